"""Bytes that are no message of their method, or too many: INVALID_ARGUMENT.

gRPC itself says UNKNOWN of the former and logs a stack, and of the latter that the server is full.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from services.errors import InvalidInput
from services.rpc.calls import Call, CallInterceptor

if TYPE_CHECKING:
    from services.rpc.calls import Reader


request_size: ContextVar[int] = ContextVar("request_size", default=0)
"""Bytes of the message that this task has read last."""


@dataclass(frozen=True)
class _Unreadable:
    """Stands for a request on its way through the interceptors."""

    description: str


class ReadableRequests(CallInterceptor):
    """The innermost, so that what it refuses is counted and told as any other refusal."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` of a message are read; of a larger one none."""
        self._max_bytes = max_bytes

    def reader(self, read: "Reader") -> "Reader":
        """Reads what can be read."""
        if read is None:
            return None

        def attempt(data: bytes) -> object:
            request_size.set(len(data))
            if len(data) > self._max_bytes:
                return _Unreadable(f"holds {len(data)} bytes, a call at most {self._max_bytes}; split it")
            try:
                return read(data)
            except DecodeError as error:
                return _Unreadable(f"isn't the method's message: {error}")

        return attempt

    def received(self, call: Call, request: object) -> None:
        """Raises InvalidInput for what couldn't be read."""
        if isinstance(request, _Unreadable):
            raise InvalidInput.at("request", request.description)
