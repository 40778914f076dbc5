import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import PreTrainedModel

from lm.loading import load_causal_lm
from lm.placement import Placement
from trainer.examples import Example
from trainer.sft.loss import Sums, accumulate_gradient, completion_logprobs, measure

PLACEMENT = Placement(torch.device("cpu"), torch.float64, 1, "for a test")
BATCH = [
    Example((5, 9, 20, 40, 2), 2),
    Example((7, 8, 2), 2),
    Example((30, 31, 32, 33, 34, 35, 36, 2), 1),
    Example((11, 12, 13, 14, 2), 4),
    Example((50, 51, 52, 53, 54, 55, 2), 3),
]
TOKENS = 3 + 1 + 7 + 1 + 4


@pytest.fixture(scope="module")
def model(tiny_policy: Path) -> PreTrainedModel:
    loaded = load_causal_lm(str(tiny_policy), PLACEMENT).model
    return loaded.requires_grad_(True)


def gradients(model: PreTrainedModel, micro_batch_size: int) -> tuple[torch.Tensor, Sums]:
    model.zero_grad()
    sums = accumulate_gradient(model, PLACEMENT, BATCH, micro_batch_size)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), sums


def independent_loss(model: PreTrainedModel) -> torch.Tensor:
    """Each sequence alone through the model's own forward; cross-entropy with ignored prompt labels."""
    losses = []
    for example in BATCH:
        ids = torch.tensor([example.token_ids])
        labels = ids.clone()
        labels[:, : example.start] = -100
        logits = model(input_ids=ids).logits[0, :-1]
        losses.append(
            torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum")
        )
    return torch.stack(losses).sum() / TOKENS


def test_loss_and_gradient_are_those_of_cross_entropy_per_token(model: PreTrainedModel):
    ours, sums = gradients(model, 2)
    model.zero_grad()
    loss = independent_loss(model)
    loss.backward()
    theirs = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert sums.tokens == TOKENS
    assert sums.loss / TOKENS == pytest.approx(float(loss.detach()), rel=1e-12)
    assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_gradients_are_equal_for_every_split(model: PreTrainedModel, size: int):
    whole, sums = gradients(model, 5)
    split, split_sums = gradients(model, size)
    assert torch.allclose(whole, split, atol=1e-6, rtol=0)
    assert float((whole - split).abs().max()) < 1e-12
    assert split_sums.measures("train") == pytest.approx(sums.measures("train"))


def test_the_prompt_has_no_loss(model: PreTrainedModel):
    """Its tokens change the loss only through the context they give."""
    logprobs_N, hits_N = completion_logprobs(model, [BATCH[0].token_ids], [2])
    assert logprobs_N.shape == hits_N.shape == (3,)
    alone = measure(model, PLACEMENT, [BATCH[0]], 1)
    assert alone.loss == pytest.approx(-float(logprobs_N.detach().sum()))
    assert alone.tokens == 3


def test_hits_are_the_most_likely_tokens(model: PreTrainedModel):
    ids = torch.tensor([BATCH[2].token_ids])
    best = model(input_ids=ids).logits[0].argmax(-1)
    likely = (*BATCH[2].token_ids[:-1], int(best[-2]))
    _, hits_N = completion_logprobs(model, [likely], [1])
    expected = best[:-1] == torch.tensor(likely[1:])
    assert torch.equal(hits_N, expected)
    sums = measure(model, PLACEMENT, [Example(likely, 1)], 1)
    assert sums.eos_hits == 1
    assert sums.measures("validation")["validation/eos_accuracy"] == 1.0
    assert sums.hits == int(expected.sum())


def test_measures_by_hand():
    sums = Sums(loss=6.0, hits=3, tokens=4, eos_hits=1, sequences=2)
    assert sums.measures("train") == {
        "train/loss": 1.5,
        "train/perplexity": pytest.approx(math.exp(1.5)),
        "train/token_accuracy": 0.75,
        "train/eos_accuracy": 0.5,
    }
    assert math.isfinite(Sums(loss=1e6, tokens=1, sequences=1).measures("x")["x/perplexity"])


examples = st.lists(st.integers(3, 200), min_size=2, max_size=12).flatmap(
    lambda ids: st.integers(1, len(ids) - 1).map(lambda start: Example(tuple(ids), start))
)


@settings(max_examples=20, deadline=None)
@given(batch=st.lists(examples, min_size=1, max_size=6), size=st.integers(1, 6))
def test_sums_add_up_whatever_the_batching(model: PreTrainedModel, batch: list[Example], size: int):
    together = measure(model, PLACEMENT, batch, size)
    alone = [measure(model, PLACEMENT, [each], 1) for each in batch]
    assert together.loss == pytest.approx(sum(each.loss for each in alone), abs=1e-9)
    assert together.tokens == sum(len(each) - each.start for each in batch)
    assert together.hits == sum(each.hits for each in alone)
    assert together.eos_hits == sum(each.eos_hits for each in alone)
