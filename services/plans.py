"""Which items go into a batch together, by their lengths alone."""

from collections.abc import Sequence

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

    def size(begin: int, end: int, _: int) -> int:
        return lengths[end - 1] * (end - begin)

    def fits(begin: int, end: int, tokens: int) -> bool:
        padded = size(begin, end, tokens)
        return padded <= token_budget and padded - tokens <= max(FREE_PADDING, MAX_PADDING * padded)

    batch = anchor, anchor + 1, lengths[anchor]
    """Where it begins and ends, and its tokens; summed up on the way, since `lengths` may be very long."""
    while True:
        begin, end, tokens = batch
        lower = [(begin - 1, end, tokens + lengths[begin - 1])] if begin else []
        upper = [(begin, end + 1, tokens + lengths[end])] if end < len(lengths) else []
        wider = [each for each in (*lower, *upper) if fits(*each)]
        if not wider:
            return range(begin, end)
        batch = min(wider, key=lambda each: size(*each) - each[2])
