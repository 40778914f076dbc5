"""How much each caller may have: requests and tokens a second, and calls in flight.

The numbers are those of the tokens file (tokens.py); the callers are its names. Buckets fill by the
monotonic clock, so that a clock that is set changes nothing.
"""

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar

from services.errors import Overloaded, QuotaExceeded
from services.rpc.calls import Call, CallInterceptor
from services.rpc.metrics import SecurityMetrics
from services.rpc.tokens import Identity, Quota, identity

Clock = Callable[[], float]
_ROUNDING = 1e-6

BURST_S = 1.0
"""A bucket holds what comes in so long: after a pause so much may be taken at once."""
MOST_CALLERS = 4096
"""Callers whose use is known; beyond them the one that was away longest starts afresh."""


class Bucket:
    """A token bucket. What is larger than the bucket waits until it is full, and leaves it in debt."""

    def __init__(self, rate: float, clock: Clock, burst: float | None = None) -> None:
        """`rate` a second come in, up to `burst`."""
        self._rate = rate
        self._most = max(1.0, rate * BURST_S) if burst is None else burst
        self._clock = clock
        self._level = self._most
        self._at = clock()

    def wait(self, amount: float) -> float:
        """Seconds until so much may be taken; 0 for now."""
        now = self._clock()
        self._level = min(self._most, self._level + (now - self._at) * self._rate)
        self._at = now
        missing = min(amount, self._most) - self._level
        return missing / self._rate if missing > _ROUNDING else 0.0

    def take(self, amount: float) -> None:
        """Takes it, whether it is there or not."""
        self._level -= amount


class Use:
    """What one caller has had of late and has now."""

    def __init__(self, quota: Quota, metrics: SecurityMetrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock
        self._in_flight = 0
        self.renew(quota)

    def renew(self, quota: Quota) -> None:
        """Other numbers hold from now on; calls in flight still count."""
        self.quota = quota
        self._requests = self._bucket(quota.requests_per_second)
        self._tokens = self._bucket(quota.tokens_per_second)

    def begin(self) -> None:
        """A request has come. Raises QuotaExceeded; one that is refused costs nothing."""
        most = self.quota.in_flight
        if most is not None and self._in_flight >= most:
            self._refuse("in_flight", f"{most} calls in flight")
        self._check("tokens", self._tokens, 0)
        self._check("requests", self._requests, 1)
        if self._requests is not None:
            self._requests.take(1)
        self._in_flight += 1

    def charge(self, tokens: int) -> None:
        """The request turns out to have so many tokens. Raises QuotaExceeded, and charges nothing then."""
        self._check("tokens", self._tokens, tokens)
        if self._tokens is not None:
            self._tokens.take(tokens)

    def pay(self, tokens: int) -> None:
        """The request turned out to have had so many tokens; the next ones wait for them."""
        if self._tokens is not None:
            self._tokens.take(tokens)

    def end(self) -> None:
        """The request is answered."""
        self._in_flight -= 1

    def _bucket(self, rate: float | None) -> Bucket | None:
        return None if rate is None else Bucket(rate, self._clock)

    def _check(self, unit: str, bucket: Bucket | None, amount: float) -> None:
        if bucket is not None and (wait := bucket.wait(amount)):
            self._refuse(unit, f"{getattr(self.quota, f'{unit}_per_second'):g} {unit} a second", wait)

    def _refuse(self, reason: str, quota: str, wait: float = 0.5) -> None:
        self._metrics.refused.labels(reason).inc()
        raise QuotaExceeded(f"the caller's quota of {quota} is used up; come back in {wait:.2f} s", wait)


_use: ContextVar[Use | None] = ContextVar("use", default=None)


def charge(tokens: int) -> None:
    """Tells the quota of the call that is served how many tokens it has. Raises QuotaExceeded."""
    if (use := _use.get()) is not None:
        use.charge(tokens)


@contextmanager
def charged(tokens: int) -> Iterator[None]:
    """Around what a call of so many tokens is charged for: gives them back if the queue turns it away.

    Raises QuotaExceeded.
    """
    charge(tokens)
    try:
        yield
    except Overloaded:
        pay(-tokens)
        raise


def pay(tokens: int) -> None:
    """Tells the quota of the call that is served how many tokens its answer took."""
    if (use := _use.get()) is not None:
        use.pay(tokens)


class Quotas(CallInterceptor):
    """Turns away who has used up its quota; whoever may not call at all has been turned away before."""

    def __init__(self, metrics: SecurityMetrics, clock: Clock = time.monotonic) -> None:
        self._metrics = metrics
        self._clock = clock
        self._uses: OrderedDict[str, Use] = OrderedDict()

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Raises QuotaExceeded."""
        with self.counted():
            yield

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Around a call of `identity`. Raises QuotaExceeded."""
        caller = identity.get()
        if caller is None or caller.quota == Quota():
            yield
            return
        use = self._of(caller)
        use.begin()
        _use.set(use)
        try:
            yield
        finally:
            use.end()

    def _of(self, caller: Identity) -> Use:
        use = self._uses.get(caller.name)
        if use is None:
            use = self._uses[caller.name] = Use(caller.quota, self._metrics, self._clock)
        if use.quota != caller.quota:
            use.renew(caller.quota)
        self._uses.move_to_end(caller.name)
        if len(self._uses) > MOST_CALLERS:
            self._uses.popitem(last=False)
        return use
