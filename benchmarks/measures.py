"""Sums over what was measured: medians of paired rounds, ranges, percentiles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and the least and the most of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one value per round."""
        return cls(median(values), min(values), max(values))

    def text(self, digits: int) -> str:
        """Such as 0.95 (0.93–0.97)."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def paired_ratios(rates: Sequence[float], base: Sequence[float]) -> Spread:
    """How many times as fast, each round against the same round: what slows the machine slows both."""
    return Spread.of([one / other for one, other in zip(rates, base, strict=True)])


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that `share` of all (0 < share ≤ 1) don't exceed (nearest rank)."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def in_turn(contestants: Sequence[T], rounds: int) -> list[list[T]]:
    """The order of each round: every second one backwards, so that nobody always follows the same."""
    return [list(contestants if number % 2 == 0 else reversed(contestants)) for number in range(rounds)]


def largest_difference(scores: Sequence[float], others: Sequence[float]) -> float:
    """Of scores of the same texts; NaN if one of them is."""
    differences = [abs(one - other) for one, other in zip(scores, others, strict=True)]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of what is computed that is padding, for batches of indices of `lengths`."""
    padded = sum(max(lengths[index] for index in batch) * len(batch) for batch in batches)
    return 1 - sum(lengths[index] for batch in batches for index in batch) / padded
