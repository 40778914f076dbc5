"""Bytes that are no message of their method: INVALID_ARGUMENT; gRPC itself says UNKNOWN and logs a stack."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from services.errors import InvalidInput
from services.rpc.calls import Call, CallInterceptor

if TYPE_CHECKING:
    from services.rpc.calls import Reader


@dataclass(frozen=True)
class _Unreadable:
    """Stands for a request on its way through the interceptors."""

    reason: str


class ReadableRequests(CallInterceptor):
    """The innermost, so that what it refuses is counted and told as any other refusal."""

    def reader(self, read: "Reader") -> "Reader":
        """Reads what can be read."""
        if read is None:
            return None

        def attempt(data: bytes) -> object:
            try:
                return read(data)
            except DecodeError as error:
                return _Unreadable(str(error))

        return attempt

    def received(self, call: Call, request: object) -> None:
        """Raises InvalidInput for what couldn't be read."""
        if isinstance(request, _Unreadable):
            raise InvalidInput.at("request", f"isn't the method's message: {request.reason}")
