import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from transformers import PreTrainedModel

from lm.loading import load_reward_model
from lm.placement import Placement
from trainer.examples import Example, RankedExamples
from trainer.reward_model.loss import accumulate_gradient, all_scores, margins, micro_batches, ranking_loss

PLACEMENT = Placement(torch.device("cpu"), torch.float64, 1, "for a test")
EOS = 2


def completion(*ids: int) -> Example:
    return Example((*ids, EOS), 1)


BATCH = [
    RankedExamples((completion(5, 6), completion(7, 8, 9, 10), completion(11)), (1, 2, 3)),
    RankedExamples((completion(30, 31, 32, 33, 34, 35), completion(40)), (2, 1)),
    RankedExamples(tuple(completion(50 + k, 60, 70 + k) for k in range(6)), (1, 2, 2, 4, 5, 5)),
    RankedExamples((completion(12), completion(13)), (1, 2)),
]


@pytest.fixture(scope="module")
def model(tiny_reward: Path) -> PreTrainedModel:
    return load_reward_model(str(tiny_reward), PLACEMENT).model.requires_grad_(True)


def test_the_recipes_numbers():
    """RECIPE section 6, number 6."""
    scores_K = torch.tensor([2.0, 1.0, -0.5], dtype=torch.float64, requires_grad=True)
    each = -torch.nn.functional.logsigmoid(margins(scores_K, (1, 2, 3)))
    assert each.tolist() == pytest.approx([0.313262, 0.078890, 0.201413], abs=5e-7)
    loss = ranking_loss(scores_K, (1, 2, 3))
    assert float(loss.detach()) == pytest.approx(0.197855, abs=5e-7)
    loss.backward()
    assert scores_K.grad is not None
    assert scores_K.grad.tolist() == pytest.approx([-0.114933, 0.028839, 0.086095], abs=5e-7)


def test_order_of_the_completions_does_not_matter():
    scores_K = torch.tensor([-0.5, 2.0, 1.0], dtype=torch.float64)
    assert float(ranking_loss(scores_K, (3, 1, 2))) == pytest.approx(0.197855, abs=5e-7)
    assert float(ranking_loss(scores_K, (9, 2, 7))) == pytest.approx(0.197855, abs=5e-7)


def test_ties_are_dropped_and_the_pairs_left_are_the_divisor():
    scores_K = torch.tensor([2.0, 1.0, -0.5], dtype=torch.float64)
    assert margins(scores_K, (1, 2, 2)).tolist() == [1.0, 2.5]
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(-2.5))) / 2
    assert float(ranking_loss(scores_K, (1, 2, 2))) == pytest.approx(expected)
    assert len(margins(scores_K, (1, 1, 1))) == 0


def test_equal_scores_cost_log_2_a_pair():
    assert float(ranking_loss(torch.zeros(9), tuple(range(1, 10)))) == pytest.approx(math.log(2))


rankings = st.lists(st.tuples(st.floats(-50, 50), st.integers(1, 5)), min_size=2, max_size=9).filter(
    lambda items: len({rank for _, rank in items}) > 1
)


@given(items=rankings)
def test_loss_is_that_of_a_double_loop(items: list[tuple[float, int]]):
    terms = [
        math.log1p(math.exp(-abs(w - other))) + max(0.0, other - w)
        for w, rank in items
        for other, other_rank in items
        if rank < other_rank
    ]
    scores_K = torch.tensor([score for score, _ in items], dtype=torch.float64)
    found = float(ranking_loss(scores_K, [rank for _, rank in items]))
    assert found == pytest.approx(sum(terms) / len(terms), rel=1e-9, abs=1e-12)


def gradients(model: PreTrainedModel, size: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    scores = accumulate_gradient(model, PLACEMENT, BATCH, size)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), scores


def test_gradient_is_that_of_every_completion_alone(model: PreTrainedModel):
    """An independent implementation: the model's own forward, one completion at a time, a double loop."""
    ours, scores = gradients(model, 100)
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for ranking in BATCH:
        own = [model(input_ids=torch.tensor([each.token_ids])).logits[0, 0] for each in ranking.examples]
        pairs = [
            -torch.nn.functional.logsigmoid(own[i] - own[j])
            for i, rank in enumerate(ranking.ranks)
            for j, other in enumerate(ranking.ranks)
            if rank < other
        ]
        total = total + torch.stack(pairs).mean() / len(BATCH)
    total.backward()
    theirs = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert torch.allclose(ours, theirs, atol=1e-12, rtol=0)
    losses = [ranking_loss(s, ranking.ranks) for s, ranking in zip(scores, BATCH, strict=True)]
    assert float(torch.stack(losses).mean()) == pytest.approx(float(total.detach()))


@pytest.mark.parametrize("size", [1, 4, 5, 8, 11])
def test_gradients_are_equal_for_every_split(model: PreTrainedModel, size: int):
    whole, scores = gradients(model, 100)
    split, split_scores = gradients(model, size)
    assert torch.allclose(whole, split, atol=1e-6, rtol=0)
    assert float((whole - split).abs().max()) < 1e-12
    for one, other in zip(scores, split_scores, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_scores_come_back_in_order_without_gradient(model: PreTrainedModel):
    scores = all_scores(model, PLACEMENT, BATCH, 5)
    assert [len(each) for each in scores] == [3, 2, 6, 2]
    assert not any(each.requires_grad for each in scores)
    alone = model(input_ids=torch.tensor([BATCH[1].examples[0].token_ids])).logits[0, 0]
    assert float(scores[1][0]) == pytest.approx(float(alone.detach()), abs=1e-12)


shapes = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=9), min_size=1, max_size=12)


@given(shapes=shapes, size=st.integers(1, 20))
def test_micro_batches_hold_whole_prompts_once(shapes: list[list[int]], size: int):
    batch = [
        RankedExamples(tuple(Example((1,) * n, 0) for n in shape), tuple(range(len(shape))))
        for shape in shapes
    ]
    groups = micro_batches(batch, size)
    assert sorted(row for group in groups for row in group) == list(range(len(batch)))
    assert all(sum(len(shapes[row]) for row in group) <= size or len(group) == 1 for group in groups)
