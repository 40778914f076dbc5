"""When a call is made again, where, and after how long."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc

from plaudit.clients.errors import (
    DeadlineExceeded,
    Details,
    Overloaded,
    PlauditError,
    Unavailable,
    Where,
    from_rpc,
)
from plaudit.clients.replicas import Replicas

BLIND_TRIES = 4
"""Tries at a full service that doesn't say when to come back."""
MOST_DOUBLINGS = 20
BLIND_SPREAD, LONGEST_SPREAD = 0.25, 4.0


@dataclass(frozen=True)
class Attempt:
    """One call to one address."""

    channel_index: int
    where: Where
    metadata: tuple[tuple[str, str], ...]
    wait_for_ready: bool
    is_spare: bool = False
    """Over the second connection to the only address."""

    def arguments(self, timeout: float) -> dict[str, Any]:
        """What gRPC wants to know beside the request."""
        return {"timeout": timeout, "metadata": self.metadata, "wait_for_ready": self.wait_for_ready}


class Tries(Iterator[Attempt]):
    """The tries of one call: each address in turn, and full services again and again until the deadline.

    gRPC itself tries a service that is away a few times, within one attempt and within its budget
    (channel.py). A service that is full is there, and says when it wants to be asked again; it isn't
    asked before. What spares it is that callers spread out: what each pause has beyond that is drawn from
    a span that doubles from one try to the next.

    Where one address is away another is asked, unless too many calls have lately done so in vain.
    """

    def __init__(
        self, attempts: Sequence[Attempt], timeout: float, idempotent: bool, replicas: Replicas
    ) -> None:
        """`attempts` in their order, one per address; just the first is made where another could do harm.

        `replicas` hears how each went.
        """
        self.timeout = timeout
        self.first = attempts[0]
        self.attempts = attempts
        """Of one round."""
        self._idempotent = idempotent
        self._replicas = replicas
        self._started = time.monotonic()
        self._made = 0
        self._made_at = self._started
        self._goes_on = False
        """Whether an address was away, and others are asked for it."""
        self._full: list[Overloaded] = []
        self._refusal: Overloaded | None = None

    def __next__(self) -> Attempt:
        attempt = self.attempts[self._made % len(self.attempts)]
        self._made += 1
        self._made_at = time.monotonic()
        return attempt

    def rival_of(self, attempt: Attempt) -> Attempt:
        """Who is asked, too, if `attempt` is slow: the next address, or the same one over its spare line."""
        after = self.attempts[(self.attempts.index(attempt) + 1) % len(self.attempts)]
        return replace(attempt, is_spare=True) if after is attempt else after

    @property
    def left(self) -> float:
        """Seconds that all tries together still may take."""
        return max(0.0, self._started + self.timeout - time.monotonic())

    def failure(
        self, attempt: Attempt, error: grpc.RpcError, is_connected: Callable[[], bool]
    ) -> PlauditError:
        """What to raise unless pause_after says to go on.

        If the deadline passes during a try after others that were refused, it is the refusal: whether a
        full service is asked for a last time shortly before the deadline or not is chance.
        """
        failure = from_rpc(error, attempt.where, is_connected, time.monotonic() - self._started)
        self.note(attempt, failure)
        if isinstance(failure, DeadlineExceeded) and self._refusal is not None:
            last = time.monotonic() - self._made_at
            words = f"{self._refusal.reason}; asked again, no answer in the {last:.1f} s that were left"
            return Overloaded(words, attempt.where, Details(retry_after=self._refusal.retry_after))
        return failure

    def note(self, attempt: Attempt, failure: PlauditError | None) -> None:
        """How an address did: what isn't a failure of its own, or is None, was an answer."""
        if isinstance(failure, Unavailable | DeadlineExceeded):
            self._replicas.failed(attempt.channel_index)
            return
        self._replicas.answered(attempt.channel_index)
        if failure is None:
            self._replicas.budget.earn()

    def answered(self, attempt: Attempt) -> None:
        """It ended well."""
        self.note(attempt, None)

    def pause_after(self, failure: PlauditError) -> float | None:
        """Seconds to wait before the next attempt; None if there shall be none."""
        pause = self._pause_after(failure)
        if pause is None and self._goes_on and isinstance(failure, Unavailable | DeadlineExceeded):
            self._replicas.budget.spend()
        return pause

    def _pause_after(self, failure: PlauditError) -> float | None:
        if not self._idempotent or not isinstance(failure, Unavailable | Overloaded) or not self.left:
            return None
        if isinstance(failure, Overloaded):
            self._full.append(failure)
            self._refusal = failure
        if self._made % len(self.attempts) and self._may_go_on(failure):
            return 0.0  # another address may do it at once
        full, self._full = self._full, []
        return self._until_less_full(full) if full else None

    def _may_go_on(self, failure: PlauditError) -> bool:
        """A call that has begun a round ends it: as long as one address answers, no round is in vain."""
        if isinstance(failure, Unavailable):
            self._goes_on = self._goes_on or self._replicas.budget.has_some
            return self._goes_on
        return True

    def _until_less_full(self, full: Sequence[Overloaded]) -> float | None:
        rounds = self._made // len(self.attempts)
        told = [failure.retry_after for failure in full if failure.retry_after is not None]
        if not told and rounds >= BLIND_TRIES:
            return None
        least, left = max(told, default=0.0), self.left
        if least >= left:
            return None
        spread = (least or BLIND_SPREAD) * 2.0 ** min(rounds - 1, MOST_DOUBLINGS)
        return least + random.uniform(0, min(spread, LONGEST_SPREAD, max(0.0, left / 2 - least)))
