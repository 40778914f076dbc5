"""When those who were turned away may come back: in their order, and as fast as the queue empties."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

Clock = Callable[[], float]

MEMORY_S = 5.0
"""How long ago counts for a third in the rate of now."""
LEAST_MEASURED_S = 0.1
"""Seconds of work that make a rate."""
LEAST_S, LONGEST_S = 0.05, 60.0
"""To come back in; rates change, so that a longer time would be a guess."""
MOST_STANDING = 4096
"""Callers whose place is known; the one that was given its place longest ago is forgotten first."""


class Drain:
    """How many items a second are answered, of late and while there were any."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._items = 0.0
        self._seconds = 0.0
        self._at = clock()

    @property
    def rate(self) -> float | None:
        """None until enough has been seen."""
        return self._items / self._seconds if self._seconds >= LEAST_MEASURED_S and self._items else None

    def begin(self) -> None:
        """There is something to do again: the time without doesn't count."""
        self._at = self._clock()

    def answered(self, items: int) -> None:
        """So many more are."""
        now = self._clock()
        passed, self._at = now - self._at, now
        kept = math.exp(-passed / MEMORY_S)
        self._items = self._items * kept + items
        self._seconds = self._seconds * kept + passed


class Line:
    """Who may come back when, in the order in which they were turned away. It keeps room for nobody."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._places: OrderedDict[Hashable, float] = OrderedDict()
        self._heard: dict[Hashable, float] = {}
        """When each who has a place was last here."""
        self._end = clock()

    def lets(self, who: Hashable) -> bool:
        """Whether nobody has been told to come before `who`."""
        now = self._clock()
        return self._end <= now or self._place(who, now) <= now

    def stand(self, who: Hashable, first: float, lasts: float) -> float:
        """Seconds until `who` may come back; whoever has a place already keeps it.

        `first` is when there would be room if nobody else waited, `lasts` what the queue needs to take in
        what `who` has; both in seconds.
        """
        now = self._clock()
        at = self._place(who, now)
        if at == math.inf:
            self.leave(who)
            at = self._places[who] = min(max(self._end, now + first), now + LONGEST_S)
            self._end = at + lasts
            if len(self._places) > MOST_STANDING:
                self.leave(next(iter(self._places)))
        self._heard[who] = now
        return min(max(LEAST_S, at - now if at > now else first), LONGEST_S)

    def leave(self, who: Hashable) -> None:
        """It has been let in."""
        self._places.pop(who, None)
        self._heard.pop(who, None)

    def _place(self, who: Hashable, now: float) -> float:
        """When `who` may come; never without a place, which is lost by staying away for so long."""
        at = self._places.get(who, math.inf)
        return math.inf if now - max(at, self._heard.get(who, at)) > LONGEST_S else at
