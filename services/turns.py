"""Whose turn it is: callers share a model by the tokens they have had, each by its weight.

Start-time fair queueing (Goyal, Vin and Cheng 1996): a caller's virtual time grows by tokens / weight,
the smallest goes first, and one that comes back starts where the others are, without credit for the
time it was away. The calls of one caller share its turns in the same way: behind one name may stand many who
know nothing of each other. Asyncio futures, but no loop of its own.
"""

import asyncio
import bisect
import heapq
from collections import deque
from collections.abc import Hashable, Sequence
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
    call: int
    """Tells the calls of a caller apart."""
    deadline: float | None
    since: float
    first: "asyncio.Future[Result]"
    others: "list[asyncio.Future[Result]] | None" = None
    """Those who have sent the same; few have any."""
    key: Hashable = None
    over: bool = False

    @property
    def futures(self) -> "tuple[asyncio.Future[Result], ...]":
        """What all wait for."""
        return self.first, *(self.others or ())

    def join(self, future: "asyncio.Future[Result]") -> None:
        """Somebody else waits for it, too."""
        if self.others is None:
            self.others = []
        self.others.append(future)

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits. Once nobody does it stays so: then nobody may join any more."""
        self.over = self.over or all(future.done() for future in self.futures)
        return not self.over

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

    def expire(self, now: float) -> None:
        """Tells everybody who waits if the deadline has passed."""
        if self.deadline is not None and now >= self.deadline:
            self.fail(TooLate("the deadline passed while the request waited for its turn"))


@dataclass(eq=False, slots=True)
class _Call(Generic[Item, Result]):
    """What one call has waiting: batches that stay as they are, or entries."""

    served: float
    planned: deque[list[Entry[Item, Result]]] = field(default_factory=deque)
    shared: dict[int, Entry[Item, Result]] = field(default_factory=dict)
    """By number, and so oldest first."""


@dataclass(eq=False, slots=True)
class _Flow(Generic[Item, Result]):
    """What one caller has waiting."""

    served: float
    tokens: int = 0
    """Of the entries that may share a batch."""
    calls: dict[int, _Call[Item, Result]] = field(default_factory=dict)
    order: list[tuple[float, int]] = field(default_factory=list)
    """Heap of what each call has had, and the call; what has changed since stays in it until it comes up."""
    now: float = 0.0

    def call(self, number: int) -> _Call[Item, Result]:
        """The call, from now on if it is new."""
        if number not in self.calls:
            self.calls[number] = _Call(self.now)
            heapq.heappush(self.order, (self.now, number))
        return self.calls[number]

    @property
    def due(self) -> _Call[Item, Result]:
        """Whose turn it is."""
        while True:
            served, number = self.order[0]
            call = self.calls.get(number)
            if call is not None and call.served == served:
                self.now = served
                return call
            heapq.heappop(self.order)

    def charge(self, entries: Sequence[Entry[Item, Result]]) -> None:
        """These have their turn, whichever of the calls they are of."""
        for entry in entries:
            self.served += entry.length / entry.caller[1]
            self.calls[entry.call].served += entry.length
        for number in {entry.call for entry in entries}:
            heapq.heappush(self.order, (self.calls[number].served, number))

    def leave(self, number: int) -> None:
        """Forgets the call if it has nothing more."""
        call = self.calls[number]
        if not call.planned and not call.shared:
            del self.calls[number]


class Turns(Generic[Item, Result]):
    """The queue of all callers. False when nothing waits."""

    def __init__(self) -> None:
        self._flows: dict[tuple[str, float], _Flow[Item, Result]] = {}
        self._pool: list[Entry[Item, Result]] = []
        """The entries that may share a batch, by length, then by number."""
        self._lengths: list[int] = []
        """Theirs: what is looked for in thousands of entries is found without a call for each."""
        self._now = 0.0

    def __bool__(self) -> bool:
        return bool(self._flows)

    def add(self, entry: Entry[Item, Result]) -> None:
        """Puts an entry that may share a batch with anybody's; entries come in the order of their numbers."""
        flow = self._flow(entry.caller)
        flow.call(entry.call).shared[entry.number] = entry
        flow.tokens += entry.length
        place = bisect.bisect_right(self._lengths, entry.length)
        self._pool.insert(place, entry)
        self._lengths.insert(place, entry.length)

    def add_batch(self, entries: list[Entry[Item, Result]]) -> None:
        """Puts a batch that stays as it is; all of one call."""
        self._flow(entries[0].caller).call(entries[0].call).planned.append(entries)

    def remove(self, entry: Entry[Item, Result]) -> None:
        """Takes out an entry that came by `add`, if it still waits."""
        flow = self._flows.get(entry.caller)
        call = flow.calls.get(entry.call) if flow else None
        if flow and call and call.shared.pop(entry.number, None):
            flow.tokens -= entry.length
            place = self._place(entry)
            del self._pool[place], self._lengths[place]
            self._leave([entry])

    def next_planned(self) -> list[Entry[Item, Result]] | None:
        """Takes the batch whose turn it is; None if it is the turn of an entry that may share one."""
        flow, call = self._due
        self._now = flow.served
        if not call.planned:
            return None
        batch = call.planned.popleft()
        flow.charge(batch)
        self._leave(batch)
        return batch

    def is_light(self, tokens: int) -> bool:
        """Whether whose turn it is has fewer than so many tokens waiting, while another has more."""
        flow, _ = self._due
        return flow.tokens < tokens and any(other.tokens > tokens for other in self._flows.values())

    def next_shared(self) -> tuple[Sequence[int], int]:
        """Lengths of all entries that may share a batch, and the place of the one whose turn it is."""
        _, call = self._due
        return self._lengths, self._place(next(iter(call.shared.values())))

    def take(self, places: range) -> list[Entry[Item, Result]]:
        """Takes the entries at these places of the pool."""
        batch = self._pool[places.start : places.stop]
        del self._pool[places.start : places.stop], self._lengths[places.start : places.stop]
        by_caller: dict[tuple[str, float], list[Entry[Item, Result]]] = {}
        for entry in batch:
            by_caller.setdefault(entry.caller, []).append(entry)
        for caller, entries in by_caller.items():
            flow = self._flows[caller]
            flow.charge(entries)
            flow.tokens -= sum(entry.length for entry in entries)
            for entry in entries:
                del flow.calls[entry.call].shared[entry.number]
        self._leave(batch)
        return batch

    @property
    def _due(self) -> tuple[_Flow[Item, Result], _Call[Item, Result]]:
        """Whose turn it is, and of what it has waiting."""
        flow = min(self._flows.values(), key=lambda each: each.served)
        return flow, flow.due

    def _place(self, entry: Entry[Item, Result]) -> int:
        first = bisect.bisect_left(self._lengths, entry.length)
        last = bisect.bisect_right(self._lengths, entry.length, first)
        return bisect.bisect_left(self._pool, entry.number, first, last, key=lambda each: each.number)

    def _flow(self, caller: tuple[str, float]) -> _Flow[Item, Result]:
        return self._flows.setdefault(caller, _Flow(self._now))

    def _leave(self, entries: Sequence[Entry[Item, Result]]) -> None:
        """Forgets the calls and callers that have nothing more."""
        for caller, call in {(entry.caller, entry.call) for entry in entries}:
            self._flows[caller].leave(call)
            if not self._flows[caller].calls:
                del self._flows[caller]
