import copy
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from transformers import PreTrainedModel

from lm.errors import InputError
from lm.loading import load_causal_lm, load_reward_model
from lm.placement import Placement
from trainer.config import AdamSection
from trainer.errors import CheckpointError
from trainer.optimisation import TrainedModel, cosine_factor, micro_batches, schedule_factor, warmup_factor


def model(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return load_causal_lm(str(path), Placement(torch.device("cpu"), dtype, 1, "")).model


def give_gradients(trained: TrainedModel, value: float = 1.0) -> None:
    for parameter in trained.parameters.values():
        parameter.grad = torch.full_like(parameter, value)


def test_cosine_to_a_tenth():
    assert [cosine_factor(step, 10) for step in (0, 5, 10)] == pytest.approx([1.0, 0.55, 0.1])
    assert cosine_factor(99, 10) == pytest.approx(0.1)
    assert cosine_factor(10, 10, end=0.0) == pytest.approx(0.0)


def test_warm_up_from_a_tenth():
    factors = [warmup_factor(step, 10) for step in range(12)]
    assert factors == pytest.approx([0.1, 0.19, 0.28, 0.37, 0.46, 0.55, 0.64, 0.73, 0.82, 0.91, 1.0, 1.0])
    assert warmup_factor(0, 0) == 1.0


def test_warm_up_then_cosine():
    factors = [schedule_factor(step, 12, 2) for step in range(13)]
    assert factors[:3] == pytest.approx([0.1, 0.55, 1.0])
    assert factors[7] == pytest.approx(0.55)
    assert factors[12] == pytest.approx(0.1)
    assert schedule_factor(0, 10, 0) == 1.0
    assert schedule_factor(3, 3, 3) == 1.0


def test_adam_is_the_recipes():
    config = AdamSection()
    assert (config.adam_beta1, config.adam_beta2, config.adam_epsilon) == (0.9, 0.95, 1e-5)
    assert config.max_grad_norm == 1.0


def test_first_step_by_hand(tiny_policy: Path):
    """Adam's first step moves by lr · g / (|g| + ε) after clipping the norm to 1."""
    trained = TrainedModel(model(tiny_policy, torch.float64), "all", AdamSection(), 0.5)
    before = {name: p.detach().clone() for name, p in trained.parameters.items()}
    give_gradients(trained, 2.0)
    norm = trained.gradient_norm()
    count = sum(p.numel() for p in trained.parameters.values())
    assert norm == pytest.approx(2.0 * math.sqrt(count))
    trained.step(0.01, norm)
    clipped = 2.0 / (norm + 1e-6)
    moved = 0.01 * clipped / (clipped + 1e-5)
    for name, parameter in trained.parameters.items():
        assert torch.allclose(before[name] - parameter, torch.full_like(parameter, moved), rtol=1e-9)
        assert parameter.grad is None


def test_a_small_gradient_is_not_clipped(tiny_policy: Path):
    trained = TrainedModel(model(tiny_policy), ["norm.weight$"], AdamSection(), 0.5)
    give_gradients(trained, 1e-3)
    gradients = [p.grad for p in trained.parameters.values()]
    trained.step(0.0, trained.gradient_norm())
    assert all(g is not None and torch.allclose(g, torch.full_like(g, 1e-3)) for g in gradients)


def test_trained_parameters_are_float32_and_frozen_ones_stay(tiny_policy: Path):
    body = model(tiny_policy, torch.bfloat16)
    trained = TrainedModel(body, "top:1", AdamSection(), 0.1)
    kinds = {name: p.dtype for name, p in body.named_parameters()}
    assert kinds["model.layers.1.mlp.up_proj.weight"] == torch.float32
    assert kinds["model.layers.0.mlp.up_proj.weight"] == torch.bfloat16
    assert set(trained.parameters) == {name for name, kind in kinds.items() if kind == torch.float32}
    assert model(tiny_policy, torch.float64).dtype == torch.float64


def test_the_head_learns_faster(tiny_reward: Path):
    reward = load_reward_model(str(tiny_reward), Placement(torch.device("cpu"), torch.float64, 1, "")).model
    trained = TrainedModel(reward, "top:1", AdamSection(), 0.1, head_factor=5.0)
    before = {name: p.detach().clone() for name, p in trained.parameters.items()}
    give_gradients(trained)
    trained.step(0.01, trained.gradient_norm())
    moved = {name: float((before[name] - p.detach()).mean()) for name, p in trained.parameters.items()}
    body = moved.pop("model.norm.weight")
    assert moved["score.weight"] == pytest.approx(5 * body)


def test_a_gradient_that_is_not_finite_must_not_be_applied(tiny_policy: Path):
    trained = TrainedModel(model(tiny_policy), "all", AdamSection(), 0.1)
    assert trained.gradient_norm() == 0.0
    give_gradients(trained, math.nan)
    assert math.isnan(trained.gradient_norm())
    with pytest.raises(ValueError, match="must be cleared"):
        trained.step(0.1, trained.gradient_norm())
    trained.clear_gradients()
    assert trained.gradient_norm() == 0.0


def test_gradients_can_be_taken_out_and_added(tiny_policy: Path):
    trained = TrainedModel(model(tiny_policy), ["norm.weight$"], AdamSection(), 0.1)
    give_gradients(trained, 1.0)
    taken = trained.take_gradients()
    assert trained.gradient_norm() == 0.0
    give_gradients(trained, 2.0)
    trained.add_gradients(taken)
    assert all(torch.equal(p.grad, torch.full_like(p, 3.0)) for p in trained.parameters.values())


def test_restored_states_step_alike(tiny_policy: Path):
    one, other = (TrainedModel(model(tiny_policy), "top:1", AdamSection(), 0.1) for _ in range(2))
    give_gradients(one)
    one.step(0.01, one.gradient_norm())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    rates = [
        [group["lr"] for group in each.state_dict()["optimiser"]["param_groups"]] for each in (one, other)
    ]
    assert rates[0] == rates[1] == [0.01, 0.01], "saved again before the next step, it is the same state"
    for trained in (one, other):
        give_gradients(trained, 0.5)
        trained.step(0.02, trained.gradient_norm())
    for name, parameter in one.parameters.items():
        assert torch.equal(parameter, other.parameters[name])


def test_other_parameters_are_refused(tiny_policy: Path):
    one = TrainedModel(model(tiny_policy), "top:1", AdamSection(), 0.1)
    other = TrainedModel(model(tiny_policy), "all", AdamSection(), 0.1)
    with pytest.raises(CheckpointError, match="trains other parameters"):
        other.load_state_dict(one.state_dict())
    with pytest.raises(InputError, match=r"^model\.trainable: pattern 'no such' matches no parameter"):
        TrainedModel(model(tiny_policy), ["no such"], AdamSection(), 0.1)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=20), size=st.integers(1, 6))
def test_micro_batches_hold_each_row_once(lengths: list[int], size: int):
    rows = range(len(lengths))
    groups = list(micro_batches(rows, lengths, size))
    assert sorted(row for group in groups for row in group) == list(rows)
    assert all(1 <= len(group) <= size for group in groups)
    ordered = [lengths[row] for group in groups for row in group]
    assert ordered == sorted(ordered)
