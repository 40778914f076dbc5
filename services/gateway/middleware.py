"""What every request passes through before a route sees it, outermost first: Bookkeeping, then where there
are tokens HttpAccess (access.py), WholeRequests."""

import asyncio
import logging
import math
import re
import time
from collections.abc import Callable
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway import problems
from services.gateway.body_room import BodyRoom
from services.gateway.metrics import HttpMetrics
from services.gateway.problems import ProblemError
from services.gateway.spans import trace_refusal
from services.gateway.upstream import OnBehalf, on_behalf
from services.rpc import logs

DEFAULT_TIMEOUT_S = 60.0
MAX_TIMEOUT_S = 600.0
MAX_BODY_BYTES = 16 * 1024 * 1024
"""The event loop parses a body; four million tokens of English are about that much."""
BODY_S = 60.0
"""A body is whole so soon after its head, however long its answer is of use."""
CLIENT_CLOSED_REQUEST = 499
"""What nginx logs for a caller that hung up; nobody receives it."""
OPERATIONS = frozenset({"/healthz", "/readyz", "/metrics"})

requests_log = logging.getLogger("services.gateway.requests")
errors_log = logging.getLogger("services.gateway.errors")

_PASSED_ON = {
    "x-plaudit-caller": re.compile(r"[!-~]([ -~]{0,126}[!-~])?"),
    "authorization": re.compile(r"[ -~]{1,7000}"),  # JWTs with many groups are long
}
"""Headers that go on as gRPC metadata, which takes 8 KiB in all."""


class CallerGone(Exception):
    """The caller hung up before it had an answer."""


class Bookkeeping:
    """Gives a request its id and its place in log and metrics, and says who it comes from."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics, log_texts: bool = False) -> None:
        """With `log_texts` the log has what a fault says, too, which may hold what callers wrote."""
        self._app = app
        self._metrics = metrics
        self._log_texts = log_texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; also what no handler of the app turned into an answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        with self._metrics.active.track_inprogress():
            try:
                await self._answer(exchange)
            finally:
                self._record(exchange)

    async def _answer(self, exchange: "_Exchange") -> None:
        try:
            on_behalf.set(_on_behalf(exchange))
            await self._app(exchange.scope, exchange.receive, exchange.send)
        except CallerGone:
            exchange.status = CLIENT_CLOSED_REQUEST
        except ProblemError as problem:
            await problems.response(problem)(exchange.scope, exchange.receive, exchange.send)
            exchange.trace_refusal()
        except Exception as error:  # the app has answered it already
            shown = error if self._log_texts else logs.without_text(error)
            errors_log.error("unexpected error in %s %s", exchange.method, exchange.path, exc_info=shown)

    def _record(self, exchange: "_Exchange") -> None:
        seconds = time.perf_counter() - exchange.started
        route = getattr(exchange.scope.get("route"), "path", "")
        self._metrics.ended(exchange.method, route, exchange.status, seconds, exchange.body_bytes)
        level = logging.DEBUG if exchange.path in OPERATIONS else logging.INFO
        requests_log.log(level, "%s %s %d %.3f s", exchange.method, exchange.path, exchange.status, seconds)


class WholeRequests:
    """Has a request's body whole before its route runs, and stops the route when the caller hangs up."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._room = BodyRoom()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ProblemError for a body that is too large, too slow or one too many, and CallerGone."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._room.body() as take:
            await self._answer(await _body(scope, receive, take), scope, receive, send)

    async def _answer(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        started = asyncio.Event()

        async def send_on(message: Message) -> None:
            started.set()
            await send(message)

        gone = asyncio.create_task(_hang_up(receive))
        answer = asyncio.ensure_future(self._app(scope, _replay(body, gone), send_on))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if started.is_set():  # the end of an answer looks like a hang-up
                await asyncio.wait({answer})
        finally:
            hung_up = answer.cancel()
            gone.cancel()
            await asyncio.wait({answer, gone})
        if hung_up:
            raise CallerGone
        answer.result()


class _Exchange:
    """One request and what became of it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.headers = Headers(scope=scope)
        self.method: str = scope["method"]
        self.path: str = scope["raw_path"].decode("ascii", "replace")  # what is in it can't end a log line
        self.started, self._began_ns = time.perf_counter(), time.time_ns()
        self.request_id = logs.accept_request_id(self.headers.get("x-request-id"))
        logs.request_id.set(self.request_id)
        self.status = int(HTTPStatus.INTERNAL_SERVER_ERROR)
        self.body_bytes = 0
        self._receive = receive
        self._send = send

    def trace_refusal(self) -> None:
        """Says in a trace that it was answered here, unless it asks about the gateway itself."""
        if self.path not in OPERATIONS:
            trace_refusal(self.method, self.path, self.headers, self.status, self._began_ns)

    async def receive(self) -> Message:
        message = await self._receive()
        self.body_bytes += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self.request_id
        await self._send(message)


def peer_of(scope: Scope) -> str:
    """The caller's host; "unknown" where a proxy on this machine says what can't be passed on as one."""
    host, _ = scope.get("client") or ("", 0)
    return host if _PASSED_ON["x-plaudit-caller"].fullmatch(host) else "unknown"


def _on_behalf(exchange: _Exchange) -> OnBehalf:
    """Who the request says it comes from. Raises ProblemError."""
    return OnBehalf(
        caller=_passed(exchange.headers, "x-plaudit-caller") or peer_of(exchange.scope),
        request_id=exchange.request_id,
        authorization=_passed(exchange.headers, "authorization"),
        deadline=time.monotonic() + _timeout(exchange.headers),
    )


def _passed(headers: Headers, name: str) -> str:
    value = headers.get(name, "")
    if value and not _PASSED_ON[name].fullmatch(value):
        raise ProblemError.at(name, "is too long, or holds other characters than printable ASCII")
    return value


def _timeout(headers: Headers) -> float:
    name = "x-timeout-seconds"
    text = headers.get(name)
    if text is None:
        return DEFAULT_TIMEOUT_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise ProblemError.at(name, f"is {text!r}; use a number above 0 and at most {MAX_TIMEOUT_S:g}")
    return seconds


async def _body(scope: Scope, receive: Receive, take: Callable[[int], None]) -> bytes:
    announced = Headers(scope=scope).get("content-length", "0")
    if announced.isdecimal() and int(announced) > MAX_BODY_BYTES:
        raise _too_large()
    parts: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(min(BODY_S, on_behalf.get().deadline - time.monotonic())):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise CallerGone
                part = message.get("body", b"")
                more = message.get("more_body", False)
                if (size := size + len(part)) > MAX_BODY_BYTES:
                    raise _too_large()
                take(len(part))
                parts.append(part)
        return b"".join(parts)
    except TimeoutError:
        raise ProblemError(
            HTTPStatus.REQUEST_TIMEOUT, "DEADLINE_EXCEEDED", "the body didn't arrive in time"
        ) from None
    finally:
        parts.clear()  # a refusal's stack would hold them until somebody takes the answer


def _too_large() -> ProblemError:
    description = f"is larger than {MAX_BODY_BYTES:,} bytes; split it into several requests"
    return ProblemError.at("body", description, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _replay(body: bytes, gone: "asyncio.Task[None]") -> Receive:
    """A `receive` that gives the body, then the end of the connection."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        await asyncio.shield(gone)
        return {"type": "http.disconnect"}

    return receive
