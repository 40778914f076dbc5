"""Which of several addresses are worth a call: one that keeps failing is left out for a while."""

import random
import threading
import time
from dataclasses import dataclass

from plaudit.clients.budget import A_SECOND, Budget

FAILURES = 3
"""In a row, after which an address is left out."""
FIRST_REST, LONGEST_REST = 1.0, 30.0
"""Seconds of being left out: they double with each probe that fails, and up to half of them are drawn off."""


@dataclass
class _Replica:
    failures: int = 0
    """In a row."""
    rests_until: float = 0.0
    """`time.monotonic()`; 0 for one that is as good as any."""


class Replicas:
    """What is known of each address of a client. Safe to use from many threads."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._replicas = [_Replica() for _ in range(count)]
        self._turn = 0
        self.budget = Budget(A_SECOND)
        """Of going on to another address, and of opening a stream again: what does so in vain takes from it,
        each answer gives back. Once it is gone a call is made once."""

    def in_turn(self) -> list[int]:
        """Indices of those to try, in this order; the first is another one each time.

        Left out are those that rest. One whose rest is over comes first: this call is its single probe,
        until it has ended or another rest has passed. If all rest, all are tried.
        """
        with self._lock:
            now = time.monotonic()
            good = [index for index, each in enumerate(self._replicas) if not each.rests_until]
            rested = [index for index, each in enumerate(self._replicas) if 0 < each.rests_until <= now]
            for probed in rested[:1]:
                self._replicas[probed].rests_until = now + self._rest(probed)
            order = good or [index for index in range(len(self._replicas)) if index not in rested[:1]]
            start = self._turn % len(order) if order else 0
            self._turn += 1
            return rested[:1] + order[start:] + order[:start]

    def answered(self, index: int) -> None:
        """It is there, whatever it said."""
        with self._lock:
            self._replicas[index] = _Replica()

    def failed(self, index: int) -> None:
        """Nobody answered there, or nobody in time."""
        with self._lock:
            replica = self._replicas[index]
            replica.failures += 1
            if replica.failures >= FAILURES:
                replica.rests_until = time.monotonic() + self._rest(index)

    def _rest(self, index: int) -> float:
        doublings = max(0, self._replicas[index].failures - FAILURES)
        return random.uniform(0.5, 1.0) * min(LONGEST_REST, FIRST_REST * 2.0 ** min(doublings, 10))
