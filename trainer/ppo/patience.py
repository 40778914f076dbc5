"""Waits for a service that is away or hangs, and not for ever.

Whatever a run asks of a service may be asked again (plaudit.clients.channel.IDEMPOTENT).
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from plaudit.clients.errors import DeadlineExceeded, Overloaded, PlauditError, Unavailable
from trainer.ppo.roles import RoleUnavailable
from trainer.stopping import StopSignal

ResultT = TypeVar("ResultT")

FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 5.0
SLOW_S = 30.0
"""Seconds that a call may last before its service counts as one that is waited for."""
COMES_BACK = (Unavailable, Overloaded, DeadlineExceeded)
"""What another try may mend. Whatever else a service says, it says again."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Endpoint:
    """Where a role is, in words for messages."""

    role: str
    """policy, reward, reference, or "judge" and its name."""
    target: str
    """host:port"""
    key: str
    """The configuration key that says so."""

    def __str__(self) -> str:
        return f"{self.role} at {self.target} ({self.key})"


class Away(Exception):
    """One endpoint didn't answer; another try, here or elsewhere, may."""

    def __init__(self, endpoint: Endpoint, cause: PlauditError) -> None:
        super().__init__(str(cause))
        self.endpoint = endpoint
        self.cause = cause


class Waiting:
    """A wait that has begun: pauses that grow, until it has lasted too long.

    How long is counted from the first failure: a call that hangs may last longer than that by itself.
    """

    def __init__(self, seconds: float, stop: StopSignal) -> None:
        self._seconds = seconds
        self._stop = stop
        self.renew()

    def renew(self) -> None:
        """There was an answer: from now on it is another wait."""
        self.role = ""
        """Who is waited for; empty until somebody was away."""
        self._since = datetime.now()
        self._began = time.monotonic()
        self._end = math.inf
        self._pause = FIRST_WAIT_S

    def pause(self, away: Away) -> None:
        """Sleeps a while. Raises RoleUnavailable if the wait has lasted too long, Stopped on SIGTERM."""
        self.role = away.endpoint.role
        now = time.monotonic()
        self._end = min(self._end, now + self._seconds)
        left = self._end - now
        if left <= 0:
            raise self._unavailable(away) from away.cause
        logger.warning("%s; trying for another %.0f s", away, left)
        if self._stop.wait(min(max(self._pause, away.cause.retry_after or 0.0), left)):
            reason = f"stopped while waiting for {away.endpoint}: {away.cause.reason}"
            raise self._stop.error(reason) from away.cause
        self._pause = min(2 * self._pause, LONGEST_WAIT_S)

    def tell_slow(self, endpoint: Endpoint) -> None:
        """A call is under way, and has been for long."""
        logger.warning("%s has not answered for %.0f s; waiting until the call ends", endpoint, SLOW_S)
        self.role = endpoint.role

    def _unavailable(self, away: Away) -> RoleUnavailable:
        seconds = time.monotonic() - self._began
        return RoleUnavailable(
            f"{away.endpoint} has not answered since {self._since:%H:%M:%S} ({seconds:.0f} s): "
            f"{away.cause.reason}"
        )


@dataclass(frozen=True)
class Patience:
    """How long a service may be away in the middle of a run. One object serves all endpoints and threads."""

    seconds: float
    stop: StopSignal = field(default_factory=StopSignal)
    """Ends every wait at once: a service that is away is no reason to outlive SIGTERM."""
    _waits: set[Waiting] = field(default_factory=set, init=False, repr=False, compare=False)

    @contextmanager
    def wait(self) -> Iterator[Waiting]:
        """A new wait, from now on until what was to be had is there."""
        waiting = Waiting(self.seconds, self.stop)
        self._waits.add(waiting)
        try:
            yield waiting
        finally:
            self._waits.discard(waiting)

    def waits_for(self, role: str) -> bool:
        """Whether anybody waits now for `role`, or for any judge; from any thread."""
        return any(waiting.role.split(" ")[0] == role for waiting in tuple(self._waits))

    @contextmanager
    def calling(self, endpoint: Endpoint) -> Iterator[None]:
        """Around one call: once it has lasted SLOW_S, `endpoint` is waited for until it ends."""
        with self.wait() as waiting:
            timer = threading.Timer(SLOW_S, waiting.tell_slow, (endpoint,))
            timer.daemon = True
            timer.start()
            try:
                yield
            finally:
                timer.cancel()

    def call(self, endpoint: Endpoint, ask: Callable[[], ResultT]) -> ResultT:
        """What `ask` returns, asked again while the service is away.

        Raises RoleUnavailable when it has failed for `seconds`, Stopped on SIGTERM; other errors come
        out at once.
        """
        with self.wait() as waiting:
            while True:
                try:
                    with self.calling(endpoint):
                        return ask()
                except COMES_BACK as error:
                    waiting.pause(Away(endpoint, error))
