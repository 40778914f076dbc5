"""Four PPO steps of a tiny float64 model against stored numbers, and the same steps in two halves.

The stored numbers change only when the algorithm does. Then, and after saying so in the commit:

    PLAUDIT_REGENERATE_GOLDEN=1 python -m pytest tests/unit/ppo/test_ppo_golden.py
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import DEVICES, TOLERANCE
from torch import Tensor

from trainer import checkpoints

GOLDEN = Path(__file__).parents[2] / "golden" / "ppo.json"
NAMES = (
    "objective/kl",
    "objective/entropy",
    "objective/scores",
    "objective/rlhf_reward",
    "objective/kl_coef",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "policy/entropy_avg",
    "loss/policy_avg",
    "loss/value_avg",
    "loss/ptx",
    "val/ratio",
    "val/ratio_var",
    "val/clipfrac_avg",
    "val/explained_variance",
    "val/eos_rate",
    "response_length/mean",
    "grad_norm/policy",
    "grad_norm/value",
    "grad_norm/ptx",
    "lr",
)


def world_of(make_world: Any, device: str = "cpu") -> Any:
    """Every part with a state of its own is on."""
    return make_world(
        torch.float64,
        device=device,
        temperature=0.8,
        num_ppo_epochs=2,
        warmup_iterations=2,
        learning_rate=3e-3,
        kl_coef=0.1,
        adap_kl_ctrl=True,
        horizon=50.0,
        micro_batch_size=3,
        ema_decay=0.9,
        ptx_coef=0.5,
        ptx_ratio=1,
        ptx_length=10,
        documents=[range(5, 60), range(100, 130)],
        critic={"learning_rate": 3e-3, "refit_head": True, "trainable": "top:1"},
    )


@pytest.mark.parametrize("device", DEVICES)
def test_losses_are_those_stored(make_world, device):
    world = world_of(make_world, device)
    steps = [world.step() for _ in range(4)]
    actual = [{name: step[name] for name in NAMES} for step in steps]
    if os.environ.get("PLAUDIT_REGENERATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(actual, indent=1) + "\n", encoding="utf-8")
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert len(expected) == len(actual)
    for number, (step, stored) in enumerate(zip(actual, expected, strict=True)):
        # abs: the KL of step 0 is rounding alone
        assert step == pytest.approx(stored, rel=TOLERANCE[device], abs=1e-9), f"step {number}"


def tensors(state: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(state, dict):
        for key, value in state.items():
            yield from tensors(value, f"{path}.{key}")
    elif isinstance(state, (list, tuple)):
        for index, value in enumerate(state):
            yield from tensors(value, f"{path}.{index}")
    else:
        yield path, state


def test_two_and_two_steps_are_four_bit_for_bit(make_world, tmp_path):
    """Through a checkpoint on disk, into objects made anew."""
    through, first, second = (world_of(make_world) for _ in range(3))
    for _ in range(4):
        through.step()
    for _ in range(2):
        first.step()
    folder = checkpoints.save(tmp_path, 2, first.state_dict())
    second.load_state_dict(checkpoints.load(folder))
    for _ in range(2):
        second.step()
    expected, actual = dict(tensors(through.state_dict())), dict(tensors(second.state_dict()))
    assert expected.keys() == actual.keys()
    assert any(".average." in name for name in expected)
    for name, value in expected.items():
        same = torch.equal(value, actual[name]) if isinstance(value, Tensor) else value == actual[name]
        assert same, name
    timed = ("time/", "eps", "tokens_per_second")
    for left, right in zip(through.history[2:], second.history, strict=True):
        assert {n: v for n, v in left.items() if not n.startswith(timed)} == {
            n: v for n, v in right.items() if not n.startswith(timed)
        }
