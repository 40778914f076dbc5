"""Which items go into a batch together, by their lengths alone."""

from collections.abc import Sequence
from itertools import accumulate

MAX_PADDING = 0.1
"""Share of a batch that may be padding ..."""
FREE_PADDING = 32
"""... unless it is fewer tokens than this: a second forward costs more."""


def plan_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices of `lengths` in batches of neighbours by length, longest first.

    A batch's padded size, longest × count, is at most `token_budget`; an item above it is a batch of
    its own. Longest first, so that what doesn't fit in memory fails at once.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        batch = batches[-1] if batches else []
        if batch and lengths[batch[0]] * (len(batch) + 1) <= token_budget:
            batch.append(index)
        else:
            batches.append([index])
    return batches


def neighbours(lengths: Sequence[int], anchor: int, token_budget: int) -> range:
    """The batch around place `anchor` of the ascending `lengths`, as a range of places.

    It grows to the side that pads less, while longest × count is at most `token_budget` and the padding
    at most MAX_PADDING of that or FREE_PADDING tokens.
    """
    sums = list(accumulate(lengths, initial=0))

    def padded(begin: int, end: int) -> int:
        return lengths[end - 1] * (end - begin)

    def padding(begin: int, end: int) -> int:
        return padded(begin, end) - (sums[end] - sums[begin])

    def fits(begin: int, end: int) -> bool:
        size = padded(begin, end) if begin >= 0 and end <= len(lengths) else token_budget + 1
        return size <= token_budget and padding(begin, end) <= max(FREE_PADDING, MAX_PADDING * size)

    begin, end = anchor, anchor + 1
    while wider := [place for place in ((begin - 1, end), (begin, end + 1)) if fits(*place)]:
        begin, end = min(wider, key=lambda place: padding(*place))
    return range(begin, end)
