"""When those who were turned away may come back: in their order, and as fast as the queue empties."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

Clock = Callable[[], float]

MEMORY_S = 5.0
"""How long ago counts for a third in the rate of now."""
LEAST_MEASURED_S = 1.0
"""Seconds of work that make a rate: of fewer, a slow first item of a cold start would be a large part."""
LEAST_S, LONGEST_S = 0.05, 60.0
"""To come back in; rates change, so that a longer time would be a guess."""
MOST_STANDING = 4096
"""Callers whose places are known; the one that was given its first longest ago is forgotten first."""


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


@dataclass(slots=True)
class _Place:
    """Of a call that was turned away; in the line's own time."""

    at: float
    """When it may come."""
    heard: float
    """When it last did; or may first."""


class Line:
    """Who may come back when, in the order in which they were turned away. It keeps room for nobody.

    Its time stands still where one whose turn has come finds no room: those behind it would find none either,
    and be turned away again and again; and who comes late would lose its place to them.

    Whether one who comes before its time has one more call, or the same one again, isn't told: see `most`.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._places: OrderedDict[Hashable, list[_Place]] = OrderedDict()
        """Of each one at least; the first is the next."""
        self._still = 0.0
        """Seconds for which it has stood still ..."""
        self._still_until = clock()
        """... and will have by then, by the clock."""
        self._end = self._now

    @property
    def stands(self) -> bool:
        """Whether anybody has been told to come later than now."""
        return self._end > self._now

    def lets(self, who: Hashable) -> bool:
        """Whether nobody has been told to come before `who`."""
        now = self._now
        places = self._of(who, now)
        return self._end <= now or bool(places and places[0].at <= now)

    def stand(self, who: Hashable, first: float, lasts: float, most: int = 1) -> float:
        """Seconds until `who` may come back; whoever has as many as `most` places already keeps them.

        `first` is when there would be room if nobody else waited, `lasts` what the queue needs to take in
        what `who` has; both in seconds.
        """
        now, first = self._now, min(first, LONGEST_S)
        places = self._of(who, now)
        if places and places[0].at <= now:
            after = first
            earlier = self._stand_still(now, first)
            places[0].at, places[0].heard = min(places[0].at, earlier), earlier
        else:
            if len(places) < most:
                at = min(max(self._end, now + first), now + LONGEST_S)
                self._end = at + lasts
                places = self._keep(who, [*places, _Place(at, at)])
            after = places[-1].at - now
        return min(max(LEAST_S, after), LONGEST_S)

    def leave(self, who: Hashable) -> None:
        """A call of its has been let in."""
        self._keep(who, self._places.get(who, [])[1:])

    @property
    def _now(self) -> float:
        return self._clock() - self._still

    def _stand_still(self, now: float, seconds: float) -> float:
        """From now on, where it doesn't already. Returns its own time, which is earlier then."""
        until = now + self._still + seconds
        more = min(seconds, max(0.0, until - self._still_until))
        self._still += more
        self._still_until = max(self._still_until, until)
        return now - more

    def _of(self, who: Hashable, now: float) -> list[_Place]:
        """Its places; each is lost by staying away for so long."""
        places = self._places.get(who, [])
        return self._keep(who, [place for place in places if now - place.heard <= LONGEST_S])

    def _keep(self, who: Hashable, places: list[_Place]) -> list[_Place]:
        """It has these from now on."""
        if not places:
            self._places.pop(who, None)
            return places
        if who not in self._places and len(self._places) == MOST_STANDING:
            self._places.popitem(last=False)
        self._places[who] = places
        return places
