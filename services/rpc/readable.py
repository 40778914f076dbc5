"""Bytes that are no message of their method, or too many: INVALID_ARGUMENT.

gRPC itself says UNKNOWN of the former and logs a stack, and of the latter that the server is full.
"""

from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from services.errors import InvalidInput
from services.rpc.calls import Intake

if TYPE_CHECKING:
    from services.rpc.calls import Reader

request_size: ContextVar[int] = ContextVar("request_size", default=0)
"""Bytes of the message that this task has read last."""


class ReadableRequests(Intake):
    """Reads requests: the last thing before the handler, so that a call that is refused costs no reading."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` of a message are read; of a larger one none."""
        self._max_bytes = max_bytes

    def taking(self, read: "Reader", by_stream: bool) -> Callable[[Any], object] | None:
        """Messages in the place of bytes. Raises InvalidInput for what can't be read, then and there."""
        if read is None:
            return None

        def read_one(data: bytes) -> object:
            request_size.set(len(data))
            if len(data) > self._max_bytes:
                told = f"holds {len(data)} bytes, a call at most {self._max_bytes}; split it"
                raise InvalidInput.at("request", told)
            try:
                return read(data)
            except DecodeError as error:
                raise InvalidInput.at("request", f"isn't the method's message: {error}") from None

        async def read_each(stream: AsyncIterator[bytes]) -> AsyncIterator[object]:
            async for data in stream:
                yield read_one(data)

        return read_each if by_stream else read_one
