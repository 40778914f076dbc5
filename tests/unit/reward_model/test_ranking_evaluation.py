import math

import pytest
import torch
from hypothesis import given, strategies as st

from trainer.reward_model.evaluation import accuracy, calibration_error, evaluation, measures, show_accuracies

SCORES = [torch.tensor([2.0, 1.0, -0.5]), torch.tensor([0.0, 1.0]), torch.tensor([3.0, 3.0])]
RANKS = [(1, 2, 3), (1, 2), (1, 2)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_measures_by_hand():
    """Margins 1, 2.5, 1.5; −1; 0: three of five pairs right, an equal score being wrong."""
    found = measures(SCORES, RANKS, "validation")
    assert found["validation/accuracy"] == pytest.approx(3 / 5)
    assert found["validation/margin"] == pytest.approx((1 + 2.5 + 1.5 - 1 + 0) / 5)
    assert found["validation/chosen_mean"] == pytest.approx((2 + 2 + 1 + 0 + 3) / 5)
    assert found["validation/rejected_mean"] == pytest.approx((1 - 0.5 - 0.5 + 1 + 3) / 5)
    loss = (0.197855 + math.log1p(math.exp(1)) + math.log(2)) / 3
    assert found["validation/loss"] == pytest.approx(loss, abs=1e-6)
    every = torch.tensor([2.0, 1.0, -0.5, 0.0, 1.0, 3.0, 3.0])
    assert found["validation/reward_mean"] == pytest.approx(float(every.mean()))
    assert found["validation/reward_std"] == pytest.approx(float(every.std(correction=0)))


def test_calibration_by_hand():
    """Beliefs σ(1) = .731 right, σ(1) = .731 wrong, in one bin; σ(3) = .953 right in another."""
    margins_P = torch.tensor([1.0, -1.0, 3.0], dtype=torch.float64)
    expected = (abs(1 - 2 * sigmoid(1)) + abs(1 - sigmoid(3))) / 3
    assert calibration_error(margins_P) == pytest.approx(expected)


def test_calibration_of_certainty_and_of_ignorance():
    assert calibration_error(torch.full((4,), 50.0, dtype=torch.float64)) == pytest.approx(0)
    assert calibration_error(torch.full((4,), -50.0, dtype=torch.float64)) == pytest.approx(1)
    assert calibration_error(torch.zeros(4, dtype=torch.float64)) == pytest.approx(0)


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=50))
def test_calibration_is_a_share(values: list[float]):
    assert 0 <= calibration_error(torch.tensor(values, dtype=torch.float64)) <= 1


def test_beliefs_as_often_right_as_they_say_are_calibrated():
    generator = torch.Generator().manual_seed(0)
    beliefs = torch.rand(20_000, generator=generator, dtype=torch.float64) * 0.5 + 0.5
    right = torch.rand(20_000, generator=generator, dtype=torch.float64) < beliefs
    margins_P = torch.logit(beliefs) * torch.where(right, 1.0, -1.0)
    assert calibration_error(margins_P) < 0.02


def test_accuracy_is_by_pair_and_its_interval_over_prompts():
    estimate = accuracy(SCORES, RANKS, seed=0)
    assert estimate.mean == pytest.approx(3 / 5)
    assert (estimate.low, estimate.high) == (0.0, 1.0)
    assert (estimate.n, estimate.method) == (3, "bootstrap")
    assert accuracy(SCORES, RANKS, seed=0) == estimate


def test_the_interval_narrows_with_prompts():
    few = accuracy(SCORES[:2] * 10, RANKS[:2] * 10, seed=0)
    many = accuracy(SCORES[:2] * 200, RANKS[:2] * 200, seed=0)
    assert few.mean == many.mean == 0.75
    assert 0 < many.high - many.low < few.high - few.low < 0.5


def test_evaluation_by_size():
    found = evaluation(SCORES, RANKS, "validation", seed=0)
    assert found["pairs"] == 5
    assert found["accuracy"]["mean"] == pytest.approx(0.6)
    assert {size: each["mean"] for size, each in found["accuracy_by_k"].items()} == {"2": 0.0, "3": 1.0}
    assert found["accuracy_by_k"]["2"]["n"] == 2
    assert found["measures"] == measures(SCORES, RANKS, "validation")


def test_accuracies_are_shown_beside_the_ceiling(capsys: pytest.CaptureFixture[str]):
    show_accuracies({"validation": evaluation(SCORES, RANKS, "validation", seed=0)}, 0.914)
    out = capsys.readouterr().out
    assert "people among themselves" in out
    assert "0.914" in out
    assert "0.6" in out
    show_accuracies({}, None)
    assert capsys.readouterr().out == ""
