"""How much a service has taken on and not yet answered; what would be too much is turned away.

Choudhury and Hahne 1998, "Dynamic queue length thresholds for shared-memory packet switches": who has little
is let in where who has much isn't, so that a crowd with much can't shut it out.
"""

import asyncio
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from services.errors import Overloaded
from services.line import LONGEST_S, Clock, Drain, Line

SPARE = 8
"""An eighth is there beyond each bound, for those who have no more than an eighth of what is left with it."""
MARGIN = 1.25
"""What comes before a call may take so much longer than is thought, and the call is still in time."""
OUTSIDE = 4
"""Behind one name may stand many, a gateway's callers or a team's: for each of its calls that is here, so
many more have places of their own in the line."""
RETRY_AFTER_S = 0.5
"""Before it is known how fast the queue empties."""

Who = tuple[str, float]
"""A caller's name and weight."""
_NONE: Counter[int] = Counter()


class Room:
    """Counts items, their tokens, and the bytes of the messages that they came in, from arrival to answer.

    All methods belong to one event loop.
    """

    def __init__(
        self, max_items: int, max_tokens: int, max_bytes: int, clock: Clock = time.monotonic
    ) -> None:
        """The most that may be here at a time, but for the spare part."""
        self._most = (max_items, max_tokens, max_bytes)
        self._clock = clock
        self._held: Counter[Who] = Counter()
        """Items of each caller who has any ..."""
        self._by_size: defaultdict[Who, Counter[int]] = defaultdict(Counter)
        """... and by how many came in one call."""
        self._drain = Drain(clock)
        self._line = Line(clock)
        self._freed = asyncio.Event()
        self.items = 0
        self.tokens = 0
        self.bytes = 0

    def admit(self, items: int, size: int, who: Who | None = None, deadline: float | None = None) -> None:
        """Says whether a call is to be served, before any work; `take` or `reserve` has to come at once.

        Raises Overloaded where there is no room, where others who were turned away come first, and where
        what has its turn before it takes until about its `deadline`, a `time.monotonic()`: it would take the
        others' time and be answered to nobody.
        """
        tokens = self._expected(size)
        if not self._is_open(items, tokens, size, who):
            raise self._full(items, tokens, size, who)
        self._check_deadline(items, who, deadline)
        self._line.leave(who)

    def take(self, items: int, tokens: int, size: int, who: Who | None = None) -> None:
        """Takes so much in; `size` in bytes. Raises Overloaded, and takes nothing then.

        Of a caller with a name, `admit` has decided about the spare part: it may be taken.
        """
        if not self._fits(items, tokens, size, with_spare=who is not None):
            raise self._full(items, tokens, size, who)
        if not self.items:
            self._drain.begin()
        self._count(items, tokens, size, who, items)

    def release(
        self,
        items: int,
        tokens: int,
        size: int,
        who: Who | None = None,
        *,
        of: int | None = None,
        answered: bool = True,
    ) -> None:
        """So much is answered, or nobody waits for it any more; it came in a call `of` so many items."""
        self._count(-items, -tokens, -size, who, of or items)
        if answered:
            self._drain.answered(items)
        self._freed.set()

    @contextmanager
    def reserve(self, items: int, size: int, who: Who | None = None) -> Iterator[None]:
        """Keeps room for what is made ready to be put in a queue. Raises Overloaded, before any work."""
        tokens = self._expected(size)
        self.take(items, tokens, size, who)
        try:
            yield
        finally:
            self.release(items, tokens, size, who, answered=False)

    async def wait(self, items: int, size: int, who: Who | None = None) -> None:
        """Returns when so much more would be taken in, of few tokens."""
        while not self._fits(items, 1, size, with_spare=self._is_light(items, who)):
            self._freed.clear()
            await self._freed.wait()

    def _count(self, items: int, tokens: int, size: int, who: Who | None, of: int) -> None:
        self.items += items
        self.tokens += tokens
        self.bytes += size
        if who is not None:
            self._held[who] += items
            self._by_size[who][of] += items
            if not self._by_size[who][of]:
                del self._by_size[who][of]
            if not self._held[who]:
                del self._held[who], self._by_size[who]

    def _fits(self, items: int, tokens: int, size: int, *, with_spare: bool = False) -> bool:
        return all(
            there <= most + with_spare * (most // SPARE)
            for there, most in zip(self._with(items, tokens, size), self._most, strict=True)
        )

    def _with(self, items: int, tokens: int, size: int) -> tuple[int, int, int]:
        return self.items + items, self.tokens + tokens, self.bytes + size

    def _is_light(self, items: int, who: Who | None) -> bool:
        """By what its caller has; or by itself alone, as long as half of the spare part is left to others."""
        spare = self._most[0] // SPARE
        left = self._most[0] + spare - self.items
        by_itself = SPARE * items <= left - spare // 2
        return who is not None and (by_itself or SPARE * (self._held[who] + items) <= left)

    def _is_open(self, items: int, tokens: int, size: int, who: Who | None) -> bool:
        if self._is_light(items, who):
            return self._fits(items, tokens, size, with_spare=True)
        # Half empty, it would soon have nothing to do if those who are awaited don't come.
        turn = self._line.lets(who) or self._fits(*(most // 2 for most in self._most))
        return turn and self._fits(items, tokens, size)

    def _expected(self, size: int) -> int:
        """Tokens in so many bytes, if they are like those that are here."""
        return size * self.tokens // self.bytes if self.bytes else 0

    def _check_deadline(self, items: int, who: Who | None, deadline: float | None) -> None:
        if deadline is None:
            return
        left, before = deadline - self._clock(), self._seconds_before(items, who)
        if left < MARGIN * before:
            # What is before it shrinks by a second each second, and so does what is left.
            fits_in = (MARGIN * before - left) / (MARGIN - 1)
            words = f"what is before it takes about {before:.1f} s, and its deadline is in {left:.1f} s"
            raise Overloaded(f"{words}; try again later", min(fits_in, LONGEST_S))

    def _seconds_before(self, items: int, who: Who | None) -> float:
        """Of what turns.py serves before the last of so many items: calls take turns, and so do callers.

        Where others stand in line, whole calls and not what is left of them: one that has come to its end is
        followed by its like.
        """
        rate = self._drain.rate
        if rate is None or who is None:
            return 0.0
        whole = self._line.stands
        own = sum(here * min(1.0, items / of) for of, here in self._items_of(who, whole).items())
        others = (
            min(sum(self._items_of(other, whole).values()), (own + items) * other[1] / who[1])
            for other in self._held
            if other != who
        )
        return (own + sum(others)) / rate

    def _items_of(self, who: Who, whole: bool) -> Mapping[int, int]:
        """By how many came in one call; all of those whose call isn't at its end, if it is to be `whole`."""
        held = self._by_size.get(who, _NONE)
        return {of: of * calls for of, calls in self._calls(who).items()} if whole else held

    def _calls(self, who: Who) -> dict[int, int]:
        """How many have an item here; by how many came in one."""
        return {of: math.ceil(held / of) for of, held in self._by_size.get(who, _NONE).items()}

    def _full(self, items: int, tokens: int, size: int, who: Who | None) -> Overloaded:
        rate, after = self._drain.rate, RETRY_AFTER_S
        if rate is not None:
            there = self._with(items, tokens, size)
            over = max((each - most) / max(each, 1) for each, most in zip(there, self._most, strict=True))
            first, lasts = max(0.0, over) * there[0] / rate, items / rate
            calls = sum(self._calls(who).values()) if who else 0
            after = self._line.stand(who, first, lasts, most=1 + OUTSIDE * calls)
        words = f"{self.items} items of {self.tokens} tokens wait already, in {self.bytes} bytes"
        return Overloaded(f"{words}; try again later", after)


class HasRoom:
    """What counts what waits in its room."""

    room: Room

    @property
    def waiting_items(self) -> int:
        """Items that wait or run, or are made ready."""
        return self.room.items

    @property
    def waiting_tokens(self) -> int:
        """Their tokens, of responses that grow the most there can be."""
        return self.room.tokens

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the messages that they came in."""
        return self.room.bytes


def shares(size: int, count: int) -> list[int]:
    """`size` in `count` whole parts, as even as can be."""
    return [size // count + (index < size % count) for index in range(count)]
