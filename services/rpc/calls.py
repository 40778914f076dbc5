"""One way to stand around every call, whatever its kind: a new method can't forget it."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import grpc
from grpc import aio

if TYPE_CHECKING:  # not subscriptable at runtime
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = aio.ServicerContext[Any, Any]

_KINDS: dict[tuple[bool, bool], tuple[str, str, Callable[..., "Handler"]]] = {
    (False, False): ("unary", "unary_unary", grpc.unary_unary_rpc_method_handler),
    (True, False): ("client_stream", "stream_unary", grpc.stream_unary_rpc_method_handler),
    (False, True): ("server_stream", "unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, True): ("bidi_stream", "stream_stream", grpc.stream_stream_rpc_method_handler),
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}
CALLER_KEY = "x-plaudit-caller"
MAX_CALLER = 200
"""Characters of a caller's name that count."""


@dataclass(frozen=True)
class Call:
    """One call in flight."""

    service: str
    """Full proto name, for example "plaudit.v1.RewardService"."""
    method: str
    kind: str
    """unary, client_stream, server_stream or bidi_stream."""
    context: "Context"

    def header(self, key: str) -> str | None:
        """First value of a request header."""
        for name, value in self.context.invocation_metadata() or ():
            if name == key:
                return value if isinstance(value, str) else None
        return None

    def code(self, error: BaseException | None) -> grpc.StatusCode:
        """How the call ended, given what its handler raised."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit):  # the latter in a handler that yields
            remaining = self.context.time_remaining()
            # The client's clock may run out a little before ours.
            expired = remaining is not None and remaining <= 0.01
            return grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
        if error is not None and not isinstance(error, aio.AbortError):
            return grpc.StatusCode.INTERNAL
        code = self.context.code()  # an int at runtime, whatever its annotation says
        return code if isinstance(code, grpc.StatusCode) else _CODES.get(code or 0, grpc.StatusCode.UNKNOWN)


def deadline_of(context: "Context") -> float | None:
    """The `time.monotonic()` at which the caller gives up; None if it never does."""
    remaining = context.time_remaining()  # None at runtime without a deadline, whatever its annotation says
    return None if remaining is None else time.monotonic() + remaining


def caller_of(context: "Context") -> str:
    """Whose call it is, for sharing fairly: the name in x-plaudit-caller, else the connection."""
    for key, value in context.invocation_metadata() or ():
        if key == CALLER_KEY and isinstance(value, str) and value:
            return value[:MAX_CALLER]
    return str(context.peer())


class CallInterceptor(aio.ServerInterceptor):
    """Base of our interceptors: override `around`, and `received` and `sent` to see messages."""

    def around(self, call: Call) -> AbstractAsyncContextManager[None]:
        """Entered before the handler runs and left after its last response."""
        raise NotImplementedError

    def received(self, call: Call) -> None:
        """A request message has reached the handler."""

    def sent(self, call: Call) -> None:
        """The handler has given a response message."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Wraps the method's handler; unknown methods stay UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        return None if handler is None else _wrap(self, handler, handler_call_details.method)


def _wrap(interceptor: CallInterceptor, handler: "Handler", path: str) -> "Handler":
    kind, attribute, make = _KINDS[bool(handler.request_streaming), bool(handler.response_streaming)]
    behaviour = getattr(handler, attribute)
    _, service, method = path.split("/", 2)
    sees_requests = type(interceptor).received is not CallInterceptor.received

    def begin(request: object, context: "Context") -> tuple[Call, object]:
        call = Call(service, method, kind, context)
        if handler.request_streaming:
            return call, _counted(
                interceptor, call, cast(AsyncIterator[object], request)
            ) if sees_requests else request
        interceptor.received(call)
        return call, request

    async def run(request: object, context: "Context") -> object:
        """One response; or a stream of them, for handlers that write to the context themselves."""
        call, request = begin(request, context)
        async with interceptor.around(call):
            response = await behaviour(request, context)
            if not handler.response_streaming:
                interceptor.sent(call)
            return response

    async def generate(request: object, context: "Context") -> AsyncIterator[object]:
        call, request = begin(request, context)
        async with interceptor.around(call):
            async for response in behaviour(request, context):
                interceptor.sent(call)
                yield response

    wrapped = generate if inspect.isasyncgenfunction(behaviour) else run
    return make(wrapped, handler.request_deserializer, handler.response_serializer)


async def _counted(
    interceptor: CallInterceptor, call: Call, requests: AsyncIterator[object]
) -> AsyncIterator[object]:
    async for request in requests:
        interceptor.received(call)
        yield request
