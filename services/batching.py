"""The token-budget batcher: forms batches by length, asyncio only.

On a CPU a padded batch of mixed lengths is slower than no batching at all, and one sorted by length
under a budget of about a thousand padded tokens is fastest; a batch may be a single item.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.errors import Overloaded, TooLate

Item = TypeVar("Item")
Result = TypeVar("Result")

RunBatch = Callable[[Sequence[Item], float | None], Awaitable[Sequence[Result]]]
"""(items, deadline) → one result per item, in their order."""

TOKEN_BUDGETS = {"cpu": 1024, "cuda": 32768}
"""Padded tokens of a batch by kind of device; on a CPU more is slower (benchmarked), a GPU wants more."""


@dataclass(frozen=True)
class CallLimits:
    """How much one call may carry, padding not counted; a service with nothing to do admits it."""

    max_items: int = 4096
    max_tokens: int = 1 << 20


WAITING_CALLS = 4
"""Calls of the largest size that may be in flight together."""


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


class Batcher(Generic[Item, Result]):
    """Runs callers' items in batches, and turns callers away when too much waits.

    Callers take turns batch by batch. A batch holds items of one caller: sharing one between callers
    changes only `submit`'s inside.
    """

    def __init__(
        self, run_batch: RunBatch[Item, Result], *, token_budget: int, max_items: int, max_tokens: int
    ) -> None:
        """`max_items` and `max_tokens` bound what all callers together may have waiting or running."""
        self._run_batch = run_batch
        self._token_budget = token_budget
        self._max_items = max_items
        self._max_tokens = max_tokens
        self.waiting_items = 0
        self.waiting_tokens = 0

    async def submit(
        self, items: Sequence[Item], lengths: Sequence[int], deadline: float | None = None
    ) -> list[Result]:
        """Results in the order of `items`, whose token counts are `lengths`.

        When the caller is cancelled, its items that haven't begun never run; nor do they after
        `deadline`, a `time.monotonic()`. Raises Overloaded, TooLate, and what `run_batch` raises.
        """
        waiting = set(range(len(items)))
        self._admit(len(items), sum(lengths))
        results: dict[int, Result] = {}
        try:
            for batch in plan_batches(lengths, self._token_budget):
                if deadline is not None and time.monotonic() >= deadline:
                    raise TooLate("the deadline passed while the request waited for its turn")
                done = await self._run_batch([items[index] for index in batch], deadline)
                results.update(zip(batch, done, strict=True))
                waiting.difference_update(batch)
                self._release(lengths[index] for index in batch)
        finally:
            self._release(lengths[index] for index in waiting)
        return [results[index] for index in range(len(items))]

    def _admit(self, items: int, tokens: int) -> None:
        if self.waiting_items + items > self._max_items or self.waiting_tokens + tokens > self._max_tokens:
            raise Overloaded(
                f"{self.waiting_items} items of {self.waiting_tokens} tokens wait already; try again later"
            )
        self.waiting_items += items
        self.waiting_tokens += tokens

    def _release(self, lengths: Iterable[int]) -> None:
        for length in lengths:
            self.waiting_items -= 1
            self.waiting_tokens -= length
