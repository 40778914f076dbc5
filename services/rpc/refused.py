"""What a call has sent goes out of memory with its refusal, and not only when garbage is collected."""

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from grpc import aio

from services.rpc.calls import KINDS, Around

if TYPE_CHECKING:
    from services.rpc.calls import Context, Handler


class LetGo(Around):
    """Stands around all else, which gives coroutines by now; takes the stack off refusals, and ends streams.

    gRPC keeps the error with the call, and the frames in its stack hold the request and the call; its
    iterator of requests holds the last one, and itself. Nothing would free them but a collection, and a
    flood of large refused requests comes before the next.
    """

    def wrap(self, handler: "Handler", path: str) -> "Handler":
        """Stands around every method."""
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
