"""Whose turn it is: callers share a model by the tokens they have had, each by its weight.

Start-time fair queueing (Goyal, Vin and Cheng 1996): a caller's virtual time grows by tokens / weight,
the smallest goes first, and one that comes back starts where the others are, without credit for the
time it was away. Asyncio futures, but no loop of its own.
"""

import asyncio
import bisect
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.errors import TooLate

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False, slots=True)
class Entry(Generic[Item, Result]):
    """An item that waits or runs, and those who wait for it."""

    item: Item
    length: int
    number: int
    """Order of arrival, over all callers."""
    caller: tuple[str, float]
    """Name and weight of the first who sent it."""
    deadline: float | None
    since: float
    key: Hashable = None
    futures: "list[asyncio.Future[Result]]" = field(default_factory=list)

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits."""
        return any(not future.done() for future in self.futures)

    def finish(self, result: Result) -> None:
        """Tells everybody who waits."""
        for future in self.futures:
            if not future.done():
                future.set_result(result)

    def fail(self, error: Exception) -> None:
        """Tells everybody who waits that there is no result."""
        for future in self.futures:
            if not future.done():
                future.set_exception(error)

    def expire(self, now: float) -> bool:
        """Whether the deadline has passed; those who wait are told then."""
        late = self.deadline is not None and now >= self.deadline
        if late:
            self.fail(TooLate("the deadline passed while the request waited for its turn"))
        return late


@dataclass(eq=False, slots=True)
class _Flow(Generic[Item, Result]):
    """What one caller has waiting."""

    served: float
    tokens: int = 0
    """Of the entries that may share a batch."""
    planned: deque[list[Entry[Item, Result]]] = field(default_factory=deque)
    shared: dict[int, Entry[Item, Result]] = field(default_factory=dict)
    """By number, and so oldest first."""

    @property
    def planned_is_next(self) -> bool:
        if not self.planned or not self.shared:
            return bool(self.planned)
        return self.planned[0][0].number < next(iter(self.shared))


class Turns(Generic[Item, Result]):
    """The queue of all callers. False when nothing waits."""

    def __init__(self) -> None:
        self._flows: dict[tuple[str, float], _Flow[Item, Result]] = {}
        self._pool: list[Entry[Item, Result]] = []
        """The entries that may share a batch, by length, then by number."""
        self._now = 0.0

    def __bool__(self) -> bool:
        return bool(self._flows)

    def add(self, entry: Entry[Item, Result]) -> None:
        """Puts an entry that may share a batch with anybody's."""
        flow = self._flow(entry.caller)
        flow.shared[entry.number] = entry
        flow.tokens += entry.length
        bisect.insort(self._pool, entry, key=_place)

    def add_batch(self, entries: list[Entry[Item, Result]]) -> None:
        """Puts a batch that stays as it is; all of one caller."""
        self._flow(entries[0].caller).planned.append(entries)

    def remove(self, entry: Entry[Item, Result]) -> None:
        """Takes out an entry that came by `add`, if it still waits."""
        flow = self._flows.get(entry.caller)
        if flow is not None and flow.shared.pop(entry.number, None) is not None:
            flow.tokens -= entry.length
            del self._pool[bisect.bisect_left(self._pool, _place(entry), key=_place)]
            self._leave(entry.caller)

    def next_planned(self) -> list[Entry[Item, Result]] | None:
        """Takes the batch whose turn it is; None if it is the turn of an entry that may share one."""
        caller, flow = self._due
        self._now = flow.served
        if not flow.planned_is_next:
            return None
        batch = flow.planned.popleft()
        self._charge(batch)
        self._leave(caller)
        return batch

    def is_light(self, tokens: int) -> bool:
        """Whether whose turn it is has fewer than so many tokens waiting, while another has more."""
        _, flow = self._due
        return flow.tokens < tokens and any(other.tokens > tokens for other in self._flows.values())

    def next_shared(self) -> tuple[Sequence[Entry[Item, Result]], int]:
        """All entries that may share a batch, by length, and the place of the one whose turn it is."""
        _, flow = self._due
        oldest = next(iter(flow.shared.values()))
        return self._pool, bisect.bisect_left(self._pool, _place(oldest), key=_place)

    def take(self, places: range) -> list[Entry[Item, Result]]:
        """Takes the entries at these places of the pool."""
        batch = self._pool[places.start : places.stop]
        del self._pool[places.start : places.stop]
        self._charge(batch)
        for entry in batch:
            flow = self._flows[entry.caller]
            flow.tokens -= entry.length
            del flow.shared[entry.number]
        for caller in {entry.caller for entry in batch}:
            self._leave(caller)
        return batch

    @property
    def _due(self) -> tuple[tuple[str, float], _Flow[Item, Result]]:
        """Whose turn it is, and what it has waiting."""
        return min(self._flows.items(), key=lambda each: each[1].served)

    def _flow(self, caller: tuple[str, float]) -> _Flow[Item, Result]:
        return self._flows.setdefault(caller, _Flow(self._now))

    def _charge(self, entries: Iterable[Entry[Item, Result]]) -> None:
        for entry in entries:
            self._flows[entry.caller].served += entry.length / entry.caller[1]

    def _leave(self, caller: tuple[str, float]) -> None:
        flow = self._flows[caller]
        if not flow.planned and not flow.shared:
            del self._flows[caller]


def _place(entry: Entry[Item, Result]) -> tuple[int, int]:
    return entry.length, entry.number
