"""What may be sent beyond one try a call, so that a service in trouble isn't asked for ever more."""

import threading
import time

MOST = 10.0
"""So much is left after a while without trouble."""
SHARE = 0.1
"""Comes back with each call that is made, or answered."""
A_SECOND = 0.5
"""Comes back with time, so that an outage is noticed to be over."""


class Budget:
    """Of one client, for one purpose. Safe to use from many threads."""

    def __init__(self, a_second: float = 0.0) -> None:
        self._lock = threading.Lock()
        self._a_second = a_second
        self._left, self._since = MOST, time.monotonic()

    @property
    def has_some(self) -> bool:
        """Whether there is one to spend."""
        with self._lock:
            self._refill()
            return self._left >= 1

    def earn(self) -> None:
        """A call is made, or answered."""
        if self._left < MOST:  # not in most calls, which need no lock then
            with self._lock:
                self._left = min(MOST, self._left + SHARE)

    def spend(self) -> bool:
        """Whether there was one, which is gone now."""
        with self._lock:
            self._refill()
            if self._left < 1:
                return False
            self._left -= 1
            return True

    def _refill(self) -> None:
        since, self._since = self._since, time.monotonic()
        self._left = min(MOST, self._left + self._a_second * (self._since - since))
