"""What a call has sent goes out of memory with its refusal, and not only when garbage is collected."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
from grpc import aio

from services.rpc.calls import KINDS

if TYPE_CHECKING:
    from services.rpc.calls import Context, Handler


class LetGo(aio.ServerInterceptor):
    """Stands around all else, which gives coroutines by now; takes the stack off refusals, and ends streams.

    gRPC keeps the error with the call, and the frames in its stack hold the request and the call; its
    iterator of requests holds the last one, and itself. Nothing would free them but a collection, and a
    flood of large refused requests comes before the next.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Stands around every method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        _, attribute, make = KINDS[bool(handler.request_streaming), bool(handler.response_streaming)]
        behaviour = getattr(handler, attribute)

        async def run(request: Any, context: "Context") -> Any:  # noqa: ANN401  message or stream; response or None
            try:
                return await behaviour(request, context)
            except aio.AbortError as aborted:
                if handler.request_streaming:
                    with suppress(RuntimeError):  # somebody still waits for the next message
                        await aiter(request).aclose()
                del request, context
                aborted.__context__ = None
                raise aborted.with_traceback(None) from None

        return make(run, handler.request_deserializer, handler.response_serializer)
