"""Who doesn't read what it is sent is cut off: a stream waits for its reader no longer than a stated time."""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc

from services.errors import NotRead
from services.rpc import status
from services.rpc.calls import Around

if TYPE_CHECKING:
    from services.rpc.calls import Context, Handler

Behaviour = Callable[[object, "Context"], AsyncGenerator[object, None]]

LAST_WORDS_S = 1.0
"""How long the status has to leave the server; after that it waits in gRPC, behind what is unread."""


class UnreadStreams(Around):
    """Writes the responses of streams, the outermost: a handler that yields can't see how long one waits.

    gRPC takes a response once the reader's flow-control window has room for it, and holds one more.
    """

    def __init__(self, seconds: float) -> None:
        """A response that isn't taken for so long ends its stream, and frees what that had in flight."""
        super().__init__()
        self._seconds = seconds

    def wrap(self, handler: "Handler", path: str) -> "Handler":
        """Stands around methods that respond by a stream and yield."""
        if not handler.response_streaming:
            return handler
        several = handler.request_streaming
        behaviour: Any = handler.stream_stream if several else handler.unary_stream
        if not inspect.isasyncgenfunction(behaviour):  # it writes for itself
            return handler
        make: Callable[..., Handler] = (
            grpc.stream_stream_rpc_method_handler if several else grpc.unary_stream_rpc_method_handler
        )
        return make(self._writing(behaviour), handler.request_deserializer, handler.response_serializer)

    def _writing(self, behaviour: Behaviour) -> Callable[[object, "Context"], Awaitable[None]]:
        async def write_all(request: object, context: "Context") -> None:
            async with contextlib.aclosing(behaviour(request, context)) as responses:
                is_first = True
                async for response in responses:
                    try:
                        async with asyncio.timeout(self._seconds):
                            if is_first:  # gRPC would send headers of an unread response again, and fail
                                await context.send_initial_metadata(())
                                is_first = False
                            await context.write(response)
                    except TimeoutError:
                        break
                else:
                    return
                context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)  # for whoever counts how calls end
            await self._cut_off(context)

        return write_all

    async def _cut_off(self, context: "Context") -> None:
        error = NotRead(f"nobody read the results for {self._seconds:g} s; read them, or ask for fewer")
        refusal = status.refusal(error)
        assert refusal is not None
        kept = tuple(context.trailing_metadata() or ())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await context.abort(refusal.code, refusal.message, (*kept, *refusal.trailing_metadata()))
