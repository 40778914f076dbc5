"""One way to stand around every call, whatever its kind: a new method can't forget it."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import grpc
from grpc import aio

from services.errors import InvalidInput, Silent

if TYPE_CHECKING:  # not subscriptable at runtime
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = aio.ServicerContext[Any, Any]
    Reader = Callable[[bytes], Any] | None  # None leaves the bytes as they are

KINDS: dict[tuple[bool, bool], tuple[str, str, Callable[..., "Handler"]]] = {
    (False, False): ("unary", "unary_unary", grpc.unary_unary_rpc_method_handler),
    (True, False): ("client_stream", "stream_unary", grpc.stream_unary_rpc_method_handler),
    (False, True): ("server_stream", "unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, True): ("bidi_stream", "stream_stream", grpc.stream_stream_rpc_method_handler),
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class CallerLeft(asyncio.CancelledError):
    """In the place of gRPC's InternalError where a status reaches nobody: the end of a cancelled call."""


@dataclass(frozen=True)
class Call:
    """One call in flight."""

    service: str
    """Full proto name, for example "plaudit.v1.RewardService"."""
    method: str
    kind: str
    """unary, client_stream, server_stream or bidi_stream."""
    context: "Context"

    @property
    def asks_by_stream(self) -> bool:
        """Whether there may be several request messages."""
        return self.kind in ("client_stream", "bidi_stream")

    @property
    def responds_by_stream(self) -> bool:
        """Whether there may be several responses."""
        return self.kind in ("server_stream", "bidi_stream")

    def header(self, key: str) -> str | None:
        """First value of a request header."""
        for name, value in self.context.invocation_metadata() or ():
            if name == key:
                return value if isinstance(value, str) else None
        return None

    def code(self, error: BaseException | None) -> grpc.StatusCode:
        """How the call ended, given what its handler raised."""
        # An int at runtime, whatever its annotation says.
        code = cast("grpc.StatusCode | int | None", self.context.code())
        was_ended = isinstance(error, asyncio.CancelledError | GeneratorExit)  # the latter where it yields
        if isinstance(error, CallerLeft) or (was_ended and not code):
            remaining = self.context.time_remaining()
            # The client's clock may run out a little before ours.
            expired = remaining is not None and remaining <= 0.01
            return grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
        if error is not None and not was_ended and not isinstance(error, aio.AbortError):
            return grpc.StatusCode.INTERNAL
        return code if isinstance(code, grpc.StatusCode) else _CODES.get(code or 0, grpc.StatusCode.UNKNOWN)


class CallInterceptor:
    """Base of our interceptors: override `around`, `received` or `sent`.

    Where an Intake reads the requests, those before it see bytes, and those after it messages.
    """

    def around(self, call: Call) -> AbstractAsyncContextManager[None]:
        """Entered before the handler runs and left after its last response."""
        return nullcontext()

    def received(self, call: Call, request: object) -> None:
        """A request message has reached the handler."""

    def sent(self, call: Call, response: object) -> None:
        """The handler has given a response message."""


class Intake:
    """Base of what stands before requests alone, once the interceptors before it have let a call in."""

    def taking(self, read: "Reader", by_stream: bool) -> Callable[[Any], object] | None:
        """What makes of a request, or stream of requests, that which goes on; None if it does nothing here.

        `read` makes messages of bytes.
        """
        raise NotImplementedError


class Around(aio.ServerInterceptor):
    """Base of what puts another handler in the place of a method's: override `wrap`."""

    def __init__(self) -> None:
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}
        """By path: a method's handler, and what stands around it."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Wraps the method's handler, once and not at every call; unknown methods stay UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        path = handler_call_details.method
        known = self._wrapped.get(path)
        if known is None or known[0] is not handler:
            known = self._wrapped[path] = handler, self.wrap(handler, path)
        return known[1]

    def wrap(self, handler: "Handler", path: str) -> "Handler":
        """What stands around the handler of the method at `path`."""
        raise NotImplementedError


class Chain(Around):
    """Stands interceptors around every call, the first outermost. One of them has to read the requests:

    gRPC leaves the bytes as they are, or whoever is turned away would have them parsed before; and it leaves
    them on the connection, or anybody could fill the memory with what nobody asked for. So each method takes
    a stream from gRPC, of one message where it has only one.
    """

    def __init__(self, interceptors: Sequence[CallInterceptor | Intake], arrives_s: float = 60.0) -> None:
        """A call's one message has to be there within `arrives_s` after the call was let in."""
        super().__init__()
        self._interceptors = interceptors
        self._arrives_s = arrives_s

    def wrap(self, handler: "Handler", path: str) -> "Handler":
        """With all interceptors around it."""
        return _wrap(self._interceptors, self._arrives_s, handler, path)


def _wrap(
    interceptors: Sequence[CallInterceptor | Intake], arrives_s: float, handler: "Handler", path: str
) -> "Handler":
    by_stream, responds_by_stream = bool(handler.request_streaming), bool(handler.response_streaming)
    kind, attribute, _ = KINDS[by_stream, responds_by_stream]
    _, _, make = KINDS[True, responds_by_stream]
    behaviour = getattr(handler, attribute)
    _, service, method = path.split("/", 2)
    yields = inspect.isasyncgenfunction(behaviour)

    def inmost(request: object, call: Call) -> Any:  # noqa: ANN401  a coroutine, or an iterator of responses
        return behaviour(request, call.context)

    inner: Callable[[object, Call], Any] = inmost
    if not by_stream:
        arrived = _arriving(interceptors, handler.request_deserializer, arrives_s)
        inner = (_generating_of_one if yields else _running_of_one)(arrived, inner)
    for each in reversed(interceptors):
        if isinstance(each, CallInterceptor):
            inner = (_generating if yields else _running)(each, inner)
        elif by_stream and (take := each.taking(handler.request_deserializer, True)):
            inner = _taking(take, inner)

    async def run(request: object, context: "Context") -> object:
        return await inner(request, Call(service, method, kind, context))

    async def generate(request: object, context: "Context") -> AsyncIterator[object]:
        async with aclosing(inner(request, Call(service, method, kind, context))) as responses:
            async for response in responses:
                yield response

    return make(generate if yields else run, None, handler.response_serializer)


def _arriving(
    interceptors: Sequence[CallInterceptor | Intake], read: "Reader", arrives_s: float
) -> Callable[[Call], Awaitable[object]]:
    """Waits for a call's one message, and shows it to each in turn."""
    takes = [None if isinstance(each, CallInterceptor) else each.taking(read, False) for each in interceptors]

    async def arrived(call: Call) -> object:
        request: object = await _one_message(call.context, arrives_s)
        for each, take in zip(interceptors, takes, strict=True):
            if isinstance(each, CallInterceptor):
                each.received(call, request)
            elif take is not None:
                request = take(request)
        return request

    return arrived


async def _one_message(context: "Context", seconds: float) -> bytes:
    try:
        async with asyncio.timeout(seconds):
            request = await context.read()
    except TimeoutError:
        raise Silent(f"the request wasn't there, whole, after {seconds:g} s; send it again") from None
    if request is aio.EOF:
        raise InvalidInput.at("request", "there is none; send one message")
    return cast(bytes, request)


def _running_of_one(
    arrived: Callable[[Call], Awaitable[object]], inner: Callable[..., Any]
) -> Callable[..., Any]:
    async def run(request: object, call: Call) -> object:
        return await inner(await arrived(call), call)

    return run


def _generating_of_one(
    arrived: Callable[[Call], Awaitable[object]], inner: Callable[..., Any]
) -> Callable[..., Any]:
    async def generate(request: object, call: Call) -> AsyncIterator[object]:
        async for response in inner(await arrived(call), call):
            yield response

    return generate


def _taking(take: Callable[[Any], object], inner: Callable[[object, Call], Any]) -> Callable[..., Any]:
    """Before a handler: `take` fails where the interceptors outside tell the caller."""

    def run(request: object, call: Call) -> Any:  # noqa: ANN401  as `inner`
        return inner(take(request), call)

    return run


def _running(interceptor: CallInterceptor, inner: Callable[[object, Call], Any]) -> Callable[..., Any]:
    """Around a handler of one response; or of a stream, if it writes to the context itself."""

    async def run(request: object, call: Call) -> object:
        request = _seen(interceptor, request, call)
        async with interceptor.around(call):
            response = await inner(request, call)
            if not call.responds_by_stream:
                interceptor.sent(call, response)
            return response

    return run


def _generating(interceptor: CallInterceptor, inner: Callable[[object, Call], Any]) -> Callable[..., Any]:
    """Around a handler that yields its responses."""

    async def generate(request: object, call: Call) -> AsyncIterator[object]:
        request = _seen(interceptor, request, call)
        async with interceptor.around(call):
            async for response in inner(request, call):
                interceptor.sent(call, response)
                yield response

    return generate


def _seen(interceptor: CallInterceptor, request: object, call: Call) -> object:
    """The stream of requests, whose messages the interceptor sees; a call's one message is shown to it."""
    if not call.asks_by_stream or not _looks(interceptor):
        return request
    return _counted(interceptor, call, cast(AsyncIterator[object], request))


def _looks(interceptor: CallInterceptor) -> bool:
    return type(interceptor).received is not CallInterceptor.received


async def _counted(
    interceptor: CallInterceptor, call: Call, requests: AsyncIterator[object]
) -> AsyncIterator[object]:
    async for request in requests:
        interceptor.received(call, request)
        yield request
