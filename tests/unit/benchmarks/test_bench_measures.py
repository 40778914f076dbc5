"""Medians of paired rounds, ranges and percentiles, with numbers worked by hand."""

import math

import pytest

from benchmarks.measures import (
    Spread,
    in_turn,
    largest_difference,
    padding_share,
    paired_ratios,
    percentile,
)


def test_a_spread_is_the_median_between_the_least_and_the_most():
    spread = Spread.of([3.0, 1.0, 10.0])
    assert (spread.median, spread.low, spread.high) == (3.0, 1.0, 10.0)
    assert spread.text(1) == "3.0 (1.0–10.0)"


def test_of_an_even_number_of_rounds_the_median_lies_between_two():
    assert Spread.of([1.0, 2.0, 4.0, 9.0]).median == 3.0


def test_ratios_are_taken_within_a_round():
    # The machine was half as fast in the second round: the ratio of medians would be 15/30, too, but spread.
    ratios = paired_ratios([10.0, 5.0, 20.0], [20.0, 10.0, 40.0])
    assert (ratios.median, ratios.low, ratios.high) == (0.5, 0.5, 0.5)


def test_ratios_want_the_same_rounds_on_both_sides():
    with pytest.raises(ValueError, match="zip"):
        paired_ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100)])
def test_percentiles_of_a_hundred_values_by_nearest_rank(share, expected):
    assert percentile(list(range(100, 0, -1)), share) == expected


def test_the_99th_percentile_of_few_values_is_the_worst():
    assert percentile([0.1, 5.0, 0.2], 0.99) == 5.0


def test_every_second_round_goes_backwards():
    assert in_turn("abc", 3) == [["a", "b", "c"], ["c", "b", "a"], ["a", "b", "c"]]


def test_the_largest_difference_has_no_sign():
    assert largest_difference([1.0, 2.0, 3.0], [1.5, 2.0, 1.0]) == 2.0


@pytest.mark.parametrize("scores", [[math.nan, 2.0], [2.0, math.nan]])
def test_a_score_that_is_no_number_is_never_equal(scores):
    assert math.isnan(largest_difference(scores, [1.0, 2.0]))


def test_scores_of_other_texts_cant_be_compared():
    with pytest.raises(ValueError, match="zip"):
        largest_difference([1.0], [1.0, 2.0])


def test_padding_is_what_the_longest_of_a_batch_makes_of_it():
    # 4 + 4 computed for 4 + 2, and 10 for 10: 2 of 18.
    assert padding_share([4, 10, 2], [[0, 2], [1]]) == pytest.approx(2 / 18)


def test_batches_of_one_have_no_padding():
    assert padding_share([4, 10, 2], [[0], [1], [2]]) == 0.0
