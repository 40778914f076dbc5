"""What a soak finds wrong with the run that went on through it."""

import json

import pytest
import torch

from soak.learner import CHECKPOINTS, newest_step, of_outputs
from trainer import checkpoints
from trainer.metrics_file import FILE_NAME


@pytest.fixture
def run(tmp_path):
    """Of three steps, whose last two checkpoints are kept."""
    for step in (1, 2, 3):
        checkpoints.save(tmp_path / CHECKPOINTS, step, {"policy": {"weight": torch.ones(3)}})
    write_steps(tmp_path, (1, 2, 3))
    return tmp_path


def write_steps(run, steps):
    (run / FILE_NAME).write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))


def test_all_is_well(run):
    assert newest_step(run / CHECKPOINTS) == 3
    assert list(of_outputs(run)) == []


def test_a_step_that_was_judged_twice_has_two_lines(run):
    write_steps(run, (1, 2, 2, 3))
    assert list(of_outputs(run)) == []


@pytest.mark.parametrize("damaged", [(3,), (2, 3)])
def test_a_damaged_checkpoint(run, damaged):
    for step in damaged:
        (run / CHECKPOINTS / f"step-{step:08d}/policy.safetensors").write_bytes(b"")
    assert list(of_outputs(run)) == ["trainer: its newest checkpoint, of step 3, isn't whole"]


def test_steps_that_were_lost(run):
    write_steps(run, (1, 3))
    assert list(of_outputs(run)) == ["trainer: metrics.jsonl is without 1 of 3 steps"]


def test_a_run_that_never_took_a_step(tmp_path):
    assert newest_step(tmp_path / CHECKPOINTS) == 0
    assert list(of_outputs(tmp_path)) == ["trainer: its newest checkpoint, of step 0, isn't whole"]
