"""Numbers worked by hand, and what must hold for any input."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from trainer.evaluate import statistics
from trainer.evaluate.diversity import distinct_n, entropy_per_token


def test_wilson_of_60_in_100_is_the_pinned_interval():
    estimate = statistics.wilson(60, 100)
    assert (estimate.mean, estimate.n, estimate.method) == (0.6, 100, "wilson")
    assert estimate.low == pytest.approx(0.5020, abs=5e-5)
    assert estimate.high == pytest.approx(0.6906, abs=5e-5)


@pytest.mark.parametrize(("successes", "low", "high"), [(0, 0.0, 0.277533), (10, 0.722467, 1.0)])
def test_wilson_at_the_ends_stays_inside_zero_and_one(successes, low, high):
    # z² / (n + z²) = 3.841459 / 13.841459 = 0.277533
    estimate = statistics.wilson(successes, 10)
    assert estimate.low == pytest.approx(low, abs=1e-6)
    assert estimate.high == pytest.approx(high, abs=1e-6)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_proportion(successes, n):
    with pytest.raises(ValueError, match="no proportion"):
        statistics.wilson(successes, n)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_mean(case):
    estimate = statistics.wilson(*case)
    assert 0 <= estimate.low <= estimate.mean <= estimate.high <= 1


def test_outcomes_give_a_tie_one_half():
    a, b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 1.0])
    assert statistics.outcomes(a, b).tolist() == [1.0, 0.5, 0.0]


def test_win_rate_without_ties_is_wilsons():
    outcomes = np.array([1.0] * 60 + [0.0] * 40)
    assert statistics.win_rate(outcomes, seed=0) == statistics.wilson(60, 100)


def test_win_rate_with_ties_counts_them_half_and_bootstraps():
    estimate = statistics.win_rate(np.array([1.0, 0.5, 0.5, 0.0, 1.0]), seed=0)
    assert estimate.mean == pytest.approx(0.6)
    assert estimate.method == "bootstrap"
    assert estimate.low < 0.6 < estimate.high


def test_bootstrap_weights_draw_n_prompts_each_time():
    weights = statistics.resample_weights(7, seed=3, resamples=11)
    assert weights.shape == (11, 7)
    assert weights.sum(1).tolist() == [7.0] * 11


def test_bootstrap_interval_of_a_mean_is_near_the_normal_one():
    values = np.random.default_rng(0).normal(size=400)
    estimate = statistics.mean_estimate(values, seed=1)
    half = 1.96 * values.std() / math.sqrt(400)
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.02)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.02)


def test_bootstrap_is_the_same_for_the_same_seed_and_another_for_another():
    outcomes = np.array([1.0, 0.5, 0.0, 1.0, 1.0, 0.5, 0.0])
    assert statistics.win_rate(outcomes, 5) == statistics.win_rate(outcomes, 5)
    assert statistics.length_controlled_win_rate(outcomes, outcomes - 0.3, 5) == (
        statistics.length_controlled_win_rate(outcomes, outcomes - 0.3, 5)
    )


def test_length_controlled_win_rate_is_the_plain_one_where_length_does_not_matter():
    # Six of eight wins among the longer, six of eight among the shorter: slope 0, σ(θ) = 0.75.
    outcomes = np.array(([1.0] * 6 + [0.0] * 2) * 2)
    lengths = np.array([5.0] * 8 + [-5.0] * 8)
    estimate = statistics.length_controlled_win_rate(outcomes, lengths, seed=0)
    assert estimate.mean == pytest.approx(0.75, abs=2e-3)
    assert estimate.low < 0.75 < estimate.high


def test_length_controlled_win_rate_takes_out_what_length_explains():
    # Longer answers win 90 of 100, shorter ones 30 of 100: at equal length the fit passes half-way between
    # on the logit scale: ½·(log 9 + log(3/7)) = ½·(2.197225 − 0.847298) = 0.674963, σ = 0.662618.
    outcomes = np.array([1.0] * 90 + [0.0] * 10 + [1.0] * 30 + [0.0] * 70)
    lengths = np.array([3.0] * 100 + [-3.0] * 100)
    estimate = statistics.length_controlled_win_rate(outcomes, lengths, seed=0)
    assert estimate.mean == pytest.approx(0.662618, abs=1e-3)


def test_length_controlled_win_rate_of_always_longer_responses_is_held_back():
    # 80 of 100 longer ones win and only three are of equal length, of which two lose.
    outcomes = np.array([1.0] * 80 + [0.0] * 17 + [1.0] + [0.0] * 2)
    lengths = np.array([4.0] * 97 + [0.0] * 3)
    assert statistics.length_controlled_win_rate(outcomes, lengths, 0).mean < 0.5


@pytest.mark.parametrize("won", [0.0, 1.0])
def test_length_controlled_win_rate_is_finite_where_every_prompt_is_won_or_lost(won):
    estimate = statistics.length_controlled_win_rate(np.full(50, won), np.arange(50.0), seed=0)
    assert estimate.mean == pytest.approx(won, abs=0.01)


def test_length_controlled_win_rate_of_equal_lengths_is_the_plain_one():
    estimate = statistics.length_controlled_win_rate(np.array([1.0] * 3 + [0.0]), np.zeros(4), seed=0)
    assert estimate.mean == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    ("n", "bound"), [(1, 0.0), (2, 0.193147), (4, 0.636294), (16, 1.835089), (64, 3.174508)]
)
def test_best_of_n_kl_bound_is_the_pinned_one(n, bound):
    assert statistics.best_of_n_kl_bound(n) == pytest.approx(bound, abs=1e-6)


def test_best_of_n_win_bound():
    assert statistics.best_of_n_win_bound(4) == 0.8


def test_distinct_n_counts_over_all_texts_together():
    # Bigrams: (a b) (b c) | (a b) (b d): 4, of which 3 differ.
    assert distinct_n(["a b c", "A  b d"], 2) == 0.75
    # Words: a b c a b d, of which 4 of 6 differ.
    assert distinct_n(["a b c", "A  b d"], 1) == pytest.approx(4 / 6)


def test_distinct_n_does_not_join_texts_and_is_zero_where_all_are_too_short():
    assert distinct_n(["a", "b"], 2) == 0.0
    assert distinct_n([], 1) == 0.0


def test_entropy_is_the_mean_over_tokens_not_over_responses():
    assert entropy_per_token([[-1.0], [-2.0, -3.0, -6.0]]) == 3.0
    assert entropy_per_token([[], []]) == 0.0
