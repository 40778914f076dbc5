"""What every call passes through, outermost first: request id, metrics, errors, access, quotas (both in
files of their own), readiness."""

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import grpc
from grpc import aio

from services.errors import NotServing
from services.rpc import logs, status
from services.rpc.calls import Call, CallerLeft, CallInterceptor
from services.rpc.metrics import ServerMetrics
from services.rpc.scopes import STANDARD

HEALTH = "grpc.health.v1.Health"

calls_log = logging.getLogger("services.rpc.calls")
errors_log = logging.getLogger("services.rpc.errors")


class RequestIds(CallInterceptor):
    """Takes the caller's x-request-id or makes one; it is in every log line and in the trailers."""

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Sets the id and writes one line a call when it has ended; an answer doesn't wait for its line."""
        found = logs.accept_request_id(call.header("x-request-id"))
        logs.request_id.set(found)
        call.context.set_trailing_metadata((("x-request-id", found),))
        start = time.perf_counter()
        raised: BaseException | None = None
        try:
            yield
        except BaseException as error:
            raised = error
            raise
        finally:
            level = logging.DEBUG if call.service.startswith(STANDARD) else logging.INFO
            name, seconds = call.code(raised).name, time.perf_counter() - start
            line = "%s/%s %s %.3f s", call.service, call.method, name, seconds
            asyncio.get_running_loop().call_soon(calls_log.log, level, *line)


class Metrics(CallInterceptor):
    """Counts calls and messages and times calls."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics
        self._series: dict[tuple[str, str], _Series] = {}

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Counts the start, and the end by status code."""
        series = self._of(call)
        series.started.inc()
        start = time.perf_counter()
        raised: BaseException | None = None
        try:
            yield
        except BaseException as error:
            raised = error
            raise
        finally:
            series.seconds.observe(time.perf_counter() - start)
            series.handled(_camel(call.code(raised))).inc()

    def received(self, call: Call, request: object) -> None:
        """Counts a request message."""
        self._of(call).received.inc()

    def sent(self, call: Call, response: object) -> None:
        """Counts a response message."""
        self._of(call).sent.inc()

    def _of(self, call: Call) -> "_Series":
        key = call.service, call.method
        if key not in self._series:
            self._series[key] = _Series(self._metrics, (call.kind, *key))
        return self._series[key]


class _Series:
    """One method's series, looked up once: finding one by its labels takes longer than to count."""

    def __init__(self, metrics: ServerMetrics, labels: tuple[str, str, str]) -> None:
        self.started = metrics.started.labels(*labels)
        self.received = metrics.received.labels(*labels)
        self.sent = metrics.sent.labels(*labels)
        self.seconds = metrics.seconds.labels(*labels)
        self.handled = functools.cache(lambda code: metrics.handled.labels(*labels, code))


class Errors(CallInterceptor):
    """Turns what a handler raises into a status; a fault of ours into an id, and its stack into the log."""

    def __init__(self, log_texts: bool = False) -> None:
        """With `log_texts` what a fault says is in log and span, too: it may hold what callers wrote."""
        self._log_texts = log_texts

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Aborts the call with the error's status."""
        try:
            yield
        except (aio.AbortError, asyncio.CancelledError, GeneratorExit):
            raise  # a status is set already, or nobody listens any more
        except BaseException as error:
            if isinstance(error, aio.InternalError) and call.context.done():
                raise CallerLeft from None  # the handler gave a status itself, and nobody took it
            refusal = status.refusal(error)
            if refusal is None:
                error_id = status.new_error_id()
                told = "internal error %s in %s/%s"
                shown = error if self._log_texts else logs.without_text(error)
                errors_log.error(told, error_id, call.service, call.method, exc_info=shown)
                refusal = status.internal(error_id)
            kept = tuple(call.context.trailing_metadata() or ())
            try:
                await call.context.abort(refusal.code, refusal.message, (*kept, *refusal.trailing_metadata()))
            except aio.AbortError as aborted:
                if self._log_texts:
                    raise
                raise aborted from None  # spans record its stack, and would record what a fault says
            except aio.InternalError:
                raise CallerLeft from None


class Readiness(CallInterceptor):
    """Turns calls away while the server loads or drains, and knows how many are in flight."""

    def __init__(self, always: Collection[str] = ()) -> None:
        """`always`: methods ("SERVICE/METHOD") that only tell about the server: they answer in any state."""
        self._always = always
        self._refusal: str | None = "the model is loading"
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.closing = asyncio.Event()
        """Set once no call is admitted any more: long ones should come to an end."""

    @property
    def is_open(self) -> bool:
        """Whether calls are admitted."""
        return self._refusal is None

    def open(self) -> None:
        """Admits calls from now on."""
        self._refusal = None

    def close(self, reason: str) -> None:
        """Turns calls away from now on; those in flight go on."""
        self._refusal = reason
        self.closing.set()

    async def wait_idle(self) -> None:
        """Returns when no call is in flight."""
        await self._idle.wait()

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Raises NotServing, or counts the call in and out."""
        if call.service.startswith(STANDARD) or f"{call.service}/{call.method}" in self._always:
            yield
            return
        if self._refusal is not None:
            raise NotServing(self._refusal)
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()


def _camel(code: grpc.StatusCode) -> str:
    """The code as go-grpc-middleware writes it: "InvalidArgument", "OK"."""
    return "OK" if code is grpc.StatusCode.OK else code.name.title().replace("_", "")
