"""Rows cut into calls that a service accepts."""

from collections.abc import Iterator, Sequence

from plaudit.clients.data import CallLimits


def batches(sizes: Sequence[int], limits: CallLimits) -> Iterator[range]:
    """Rows 0, 1, … in runs of at most `limits.max_items` rows and `limits.max_tokens` tokens.

    `sizes` are tokens per row. A row that is too large alone is a batch of its own: the service says so.
    """
    start, tokens = 0, 0
    for row, size in enumerate(sizes):
        full = row - start >= limits.max_items or tokens + size > limits.max_tokens
        if full and row > start:
            yield range(start, row)
            start, tokens = row, 0
        tokens += size
    if start < len(sizes):
        yield range(start, len(sizes))
