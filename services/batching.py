"""The token-budget batcher: one queue for all callers, batches by length, turns by what each has had.

On a CPU a padded batch of mixed lengths is slower than no batching at all, and one sorted by length
under a budget of about a thousand padded tokens is fastest; a batch may be a single item. Asyncio only.
"""

import asyncio
import contextvars
import itertools
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.bound import Bound
from services.plans import neighbours, plan_batches
from services.room import HasRoom, Room, Who, shares
from services.turns import Entry, Turns

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
    max_bytes: int = 16 << 20
    """Of the request's message: several times what so many tokens take, as text or as ids."""


LIGHT_SHARE = 4
"""The part of the budget that a batch takes for a caller of few items beside a bulk caller: it waits for its
own batch too, and filling that up with the other's items would double the wait."""
WAITING_CALLS = 2
"""Calls of the largest size that may be in flight together: one runs, and one waits, so that there is always
something to do. More would only wait in here and not at their callers', and what waits costs (ADR 16)."""


def room_for(limits: CallLimits) -> Room:
    """Of a queue whose calls have these limits."""
    return Room(
        WAITING_CALLS * limits.max_items, WAITING_CALLS * limits.max_tokens, WAITING_CALLS * limits.max_bytes
    )


@dataclass(frozen=True)
class Caller:
    """Whose items they are. Callers share the model by the tokens they have had, each by its weight."""

    name: str = ""
    weight: float = 1.0
    deadline: float | None = None
    """`time.monotonic()` after which the items need not begin."""

    @property
    def who(self) -> Who:
        """Whose turns they are."""
        return self.name, self.weight


@dataclass(frozen=True, slots=True)
class Done(Generic[Result]):
    """A result, and where its time went."""

    value: Result
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0


@dataclass(frozen=True)
class Ran:
    """A batch that has run, well or not."""

    queue_seconds: Sequence[float]
    """What each of its items waited."""
    compute_seconds: float
    tokens: int
    padded_tokens: int
    """The same with padding."""


@dataclass(frozen=True, slots=True)
class _Call:
    """What the items of one call share. What each has of its own is little: thousands may wait, and
    garbage collection goes through all of it."""

    number: int
    who: Who
    deadline: float | None
    count: int
    sizes: Iterator[int]
    """Bytes of its message that each item gives back, in whatever order they end."""
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    """Of callbacks; each would make a copy of its own."""


class Batcher(HasRoom, Generic[Item, Result]):
    """Runs callers' items in batches, and turns callers away when too much waits.

    The caller who has had least is served next, and of its calls the one that has, from its oldest item on;
    the batch is filled up with items of about that length, whoever sent them, and for a light caller beside
    a bulk one not to the brim. Items with the same key that are in flight together are computed once. All
    methods belong to one event loop.
    """

    def __init__(
        self,
        run_batch: RunBatch[Item, Result],
        *,
        token_budget: int,
        room: Room,
        cache_items: int = 0,
    ) -> None:
        """`room` bounds what all callers together may have waiting or running.

        `cache_items` results are kept by their key, the least recently used going first.
        """
        self.room = room
        self._run_batch = run_batch
        self._token_budget = token_budget
        self._cache_items = cache_items
        self._cache: OrderedDict[Hashable, Result] = OrderedDict()
        self._turns: Turns[Item, Done[Result]] = Turns()
        self._by_key: dict[Hashable, Entry[Item, Done[Result]]] = {}
        self._numbers = itertools.count()
        self._calls = itertools.count()
        self._when_ended = self._ended
        self._pump: asyncio.Task[None] | None = None
        self.on_batch: Callable[[Ran], None] = lambda ran: None
        """Hears of every batch that has run."""
        self.on_cache_hit: Callable[[], None] = lambda: None
        """Hears of every item whose result had been kept."""

    async def submit(
        self, items: Sequence[Item], lengths: Sequence[int], caller: Caller | None = None, size: int = 0
    ) -> list[Result]:
        """Results in the order of `items`, in batches that hold nothing else.

        What else the service does then can't change a bit of them. When the caller is cancelled, its
        items that haven't begun never run. Raises Overloaded, TooLate, and what `run_batch` raises.
        """
        futures = self.put(items, lengths, caller or Caller(), size=size)
        try:
            return [(await future).value for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def put(
        self,
        items: Sequence[Item],
        lengths: Sequence[int],
        caller: Caller,
        keys: Sequence[Hashable] | None = None,
        size: int = 0,
    ) -> "list[asyncio.Future[Done[Result]]]":
        """A future for each of `items`, whose token counts are `lengths` and which came in `size` bytes.

        With `keys`, which stand for the items' content, they share batches with others; without, they
        are planned into batches of their own. A future that is cancelled takes its item out of the queue,
        unless another waits for it too. Raises Overloaded.
        """
        if not items:
            return []
        who = caller.who
        self.room.take(len(items), sum(lengths), size, who)
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Done[Result]]] = [loop.create_future() for _ in items]
        call = _Call(next(self._calls), who, caller.deadline, len(items), iter(shares(size, len(items))))
        if keys is None:
            for batch in plan_batches(lengths, self._token_budget):
                entries = [self._entry(items[index], lengths[index], call, futures[index]) for index in batch]
                self._turns.add_batch(entries)
        else:
            for item, length, key, future in zip(items, lengths, keys, futures, strict=True):
                self._share(item, length, key, call, future)
        if self._turns and self._pump is None:
            self._pump = asyncio.create_task(self._run())
        return futures

    def _share(
        self, item: Item, length: int, key: Hashable, call: _Call, future: "asyncio.Future[Done[Result]]"
    ) -> None:
        if key in self._cache:
            self._cache.move_to_end(key)
            self.on_cache_hit()
            future.set_result(Done(self._cache[key]))
            self._release(call, length, future)
        elif (entry := self._by_key.get(key)) is not None:
            entry.deadline = _later(entry.deadline, call.deadline)
            entry.join(future)
            self._wait(entry, call, future)
        else:
            entry = self._by_key[key] = self._entry(item, length, call, future)
            entry.key = key
            self._turns.add(entry)

    def _entry(
        self, item: Item, length: int, call: _Call, future: "asyncio.Future[Done[Result]]"
    ) -> "Entry[Item, Done[Result]]":
        number, now = next(self._numbers), time.perf_counter()
        entry: Entry[Item, Done[Result]] = Entry(
            item, length, number, call.who, call.number, call.deadline, now, future
        )
        self._wait(entry, call, future)
        return entry

    def _wait(
        self, entry: "Entry[Item, Done[Result]]", call: _Call, future: "asyncio.Future[Done[Result]]"
    ) -> None:
        future.add_done_callback(Bound(self._when_ended, entry, call), context=call.context)

    def _ended(
        self, entry: "Entry[Item, Done[Result]]", call: _Call, future: "asyncio.Future[Done[Result]]"
    ) -> None:
        """Takes an entry out of the queue once nobody waits for it."""
        self._release(call, entry.length, future)
        if not entry.wanted:
            self._turns.remove(entry)
            self._forget(entry)

    def _forget(self, entry: "Entry[Item, Done[Result]]") -> None:
        """From now on the same content is a new entry."""
        if self._by_key.get(entry.key) is entry:
            del self._by_key[entry.key]

    async def _run(self) -> None:
        """Runs batches until nothing waits."""
        try:
            while self._turns:
                await self._run_one(self._next_batch())
        finally:
            self._pump = None

    def _next_batch(self) -> "list[Entry[Item, Done[Result]]]":
        batch = self._turns.next_planned()
        if batch is None:
            budget = self._token_budget
            if self._turns.is_light(budget):
                budget //= LIGHT_SHARE
            batch = self._turns.take(neighbours(*self._turns.next_shared(), budget))
        now = time.monotonic()
        for entry in batch:
            entry.expire(now)
            if not entry.wanted:
                self._forget(entry)
        return [entry for entry in batch if entry.wanted]

    async def _run_one(self, batch: "list[Entry[Item, Done[Result]]]") -> None:
        if not batch:
            return
        began = time.perf_counter()
        deadlines = [entry.deadline for entry in batch]
        latest = None if None in deadlines else max(deadline for deadline in deadlines if deadline)
        try:
            values = await self._run_batch([entry.item for entry in batch], latest)
            seconds = time.perf_counter() - began
            for entry, value in zip(batch, values, strict=True):
                self._remember(entry.key, value)
                self._forget(entry)
                entry.finish(Done(value, began - entry.since, seconds))
        except Exception as error:
            for entry in batch:
                self._forget(entry)
                entry.fail(error)
        self._tell(batch, began)

    def _tell(self, batch: "list[Entry[Item, Done[Result]]]", began: float) -> None:
        lengths = [entry.length for entry in batch]
        waited = [began - entry.since for entry in batch]
        seconds = time.perf_counter() - began
        self.on_batch(Ran(waited, seconds, sum(lengths), max(lengths) * len(lengths)))

    def _remember(self, key: Hashable, value: Result) -> None:
        if self._cache_items and key is not None:
            self._cache[key] = value
            if len(self._cache) > self._cache_items:
                self._cache.popitem(last=False)

    def _release(self, call: _Call, length: int, future: "asyncio.Future[Done[Result]]") -> None:
        answered = not future.cancelled()
        if answered:
            future.exception()  # heard of: who waits for several has the first error alone
        self.room.release(1, length, next(call.sizes), call.who, of=call.count, answered=answered)


def _later(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(one, other)
