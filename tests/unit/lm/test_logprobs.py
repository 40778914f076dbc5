import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from lm import logprobs as module
from lm.errors import ModelLoadError
from lm.loading import LoadedLM, load_causal_lm
from lm.logprobs import (
    check_logits,
    entropy_from_logits,
    logprobs_from_logits,
    response_logprobs,
    response_logprobs_and_entropy,
    unflatten,
)
from lm.placement import choose_placement


@pytest.fixture(scope="module")
def policy(tiny_policy) -> LoadedLM:
    return load_causal_lm(str(tiny_policy), choose_placement("cpu", "float32", 1))


def naive(policy: LoadedLM, ids: list[int], start: int, temperature: float) -> torch.Tensor:
    """The textbook way: the model's own forward on one sequence."""
    logits = policy.model(torch.tensor([ids])).logits[0] / temperature
    logprobs = logits.log_softmax(-1)
    return torch.stack([logprobs[t - 1, ids[t]] for t in range(start, len(ids))])


def test_by_hand():
    logits = torch.tensor([[math.log(1.0), math.log(2.0), math.log(5.0)]])
    assert logprobs_from_logits(logits, torch.tensor([1])).item() == pytest.approx(math.log(2 / 8))
    # temperature 1/2 squares the odds: 1, 4, 25
    assert logprobs_from_logits(logits, torch.tensor([1]), 0.5).item() == pytest.approx(math.log(4 / 30))


def test_entropy_by_hand():
    uniform = torch.zeros(1, 8)
    assert entropy_from_logits(uniform).item() == pytest.approx(math.log(8))
    coin = torch.tensor([[math.log(0.25), math.log(0.75)]])
    assert entropy_from_logits(coin).item() == pytest.approx(0.5623351446)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_the_models_own_forward_whatever_the_padding(policy, temperature):
    sequences, starts = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15, 16, 17, 18]], [2, 1, 6]
    ours = response_logprobs(policy.model, sequences, starts, temperature)
    expected = [naive(policy, s, t, temperature) for s, t in zip(sequences, starts, strict=True)]
    torch.testing.assert_close(ours, torch.cat(expected), atol=1e-5, rtol=0)


def test_chunks_do_not_change_it(policy, monkeypatch):
    sequences, starts = [list(range(5, 40)), list(range(50, 70))], [3, 1]
    whole = response_logprobs(policy.model, sequences, starts)
    monkeypatch.setattr(module, "CHUNK", 7)
    torch.testing.assert_close(response_logprobs(policy.model, sequences, starts), whole, atol=1e-6, rtol=0)


def test_entropy_comes_from_the_same_pass(policy):
    sequences, starts = [[5, 6, 7, 8]], [2]
    logprobs, entropy = response_logprobs_and_entropy(policy.model, sequences, starts, 0.8)
    torch.testing.assert_close(logprobs, response_logprobs(policy.model, sequences, starts, 0.8))
    logits = policy.model(torch.tensor(sequences)).logits[0, 1:3] / 0.8
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits).entropy())


def test_gradients_flow_and_are_those_of_the_textbook(policy):
    parameter = policy.model.get_parameter("model.norm.weight").requires_grad_(True)
    sequences, starts = [[5, 6, 7, 8], [9, 10, 11]], [1, 1]
    ours = torch.autograd.grad(response_logprobs(policy.model, sequences, starts).sum(), parameter)[0]
    theirs = torch.autograd.grad(sum(naive(policy, s, 1, 1.0).sum() for s in sequences), parameter)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_float64_models_stay_in_float64(tiny_policy):
    policy = load_causal_lm(str(tiny_policy), choose_placement("cpu", "float64", 1))
    assert response_logprobs(policy.model, [[5, 6]], [1]).dtype is torch.float64


def test_bfloat16_logits_are_widened_before_the_softmax():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    ids = torch.tensor([1, 2, 3, 4])
    expected = logits.float().log_softmax(-1)[torch.arange(4), ids]
    torch.testing.assert_close(logprobs_from_logits(logits, ids), expected, atol=1e-6, rtol=0)


@given(counts=st.lists(st.integers(0, 6), min_size=1, max_size=5))
@settings(max_examples=50)
def test_unflatten_keeps_every_value_in_its_row(counts):
    values = torch.arange(1, sum(counts) + 1, dtype=torch.float32)
    table = unflatten(values, counts, width=6)
    assert table.shape == (len(counts), 6)
    assert torch.equal(torch.cat([table[row, :n] for row, n in enumerate(counts)]), values)
    assert all((table[row, n:] == 0).all() for row, n in enumerate(counts))


def test_an_unknown_transformation_behind_the_head_is_refused(policy, monkeypatch):
    check_logits(policy.model)
    monkeypatch.setattr(policy.model.config, "logit_scale", 3.0, raising=False)
    with pytest.raises(ModelLoadError, match="unknown way"):
        check_logits(policy.model)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("logit_scale", 2.0, lambda x: 2 * x),
        ("logits_scaling", 4.0, lambda x: x / 4),
        ("final_logit_softcapping", 5.0, lambda x: torch.tanh(x / 5) * 5),
    ],
)
def test_known_transformations_are_applied(policy, monkeypatch, key, value, expected):
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    plain = module.logits_from_hidden(policy.model, hidden)
    monkeypatch.setattr(policy.model.config, key, value, raising=False)
    torch.testing.assert_close(module.logits_from_hidden(policy.model, hidden), expected(plain))
