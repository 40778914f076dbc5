"""When those who were turned away may come back: in their order, and as fast as the queue empties."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

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


@dataclass(slots=True)
class _Place:
    """Of one who was turned away."""

    at: float
    """When it may come."""
    heard: float
    """When it was last here."""


class Line:
    """Who may come back when, in the order in which they were turned away. It keeps room for nobody."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._places: OrderedDict[Hashable, _Place] = OrderedDict()
        self._end = clock()

    @property
    def stands(self) -> bool:
        """Whether anybody has been told to come later than now."""
        return self._end > self._clock()

    def lets(self, who: Hashable) -> bool:
        """Whether nobody has been told to come before `who`."""
        now = self._clock()
        place = self._place(who, now)
        return not self.stands or (place is not None and place.at <= now)

    def stand(self, who: Hashable, first: float, lasts: float) -> float:
        """Seconds until `who` may come back; whoever has a place already keeps it.

        `first` is when there would be room if nobody else waited, `lasts` what the queue needs to take in
        what `who` has; both in seconds.
        """
        now = self._clock()
        place = self._place(who, now)
        if place is None:
            self.leave(who)
            place = self._places[who] = _Place(min(max(self._end, now + first), now + LONGEST_S), now)
            self._end = place.at + lasts
            if len(self._places) > MOST_STANDING:
                self._places.popitem(last=False)
        place.heard = now
        return min(max(LEAST_S, place.at - now if place.at > now else first), LONGEST_S)

    def leave(self, who: Hashable) -> None:
        """It has been let in."""
        self._places.pop(who, None)

    def _place(self, who: Hashable, now: float) -> _Place | None:
        """Its place, which is lost by staying away for so long."""
        place = self._places.get(who)
        return None if place is None or now - max(place.at, place.heard) > LONGEST_S else place
