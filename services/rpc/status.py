"""The one place where errors become gRPC statuses with google.rpc details."""

import uuid
from dataclasses import dataclass, field, replace

import grpc
from google.protobuf.any_pb2 import Any as AnyProto
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from lm.errors import InputError
from services import errors

MAX_MESSAGE_BYTES = 700
MAX_VIOLATIONS = 8
"""Statuses travel in headers, which gRPC cuts off at 8 KiB."""


@dataclass(frozen=True)
class Refusal:
    """An error as callers see it."""

    code: grpc.StatusCode
    message: str
    violations: tuple[errors.Violation, ...] = ()
    retry_after: float | None = None
    details: tuple[Message, ...] = field(default=(), repr=False)

    @property
    def number(self) -> int:
        """The code as google.rpc.Code numbers it."""
        return int(self.code.value[0])

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """The google.rpc.Status, and the pushback that gRPC clients' retry policies obey."""
        status = status_pb2.Status(code=self.number, message=self.message)
        for detail in self._all_details():
            packed = AnyProto()
            packed.Pack(detail)
            status.details.append(packed)
        metadata: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status.SerializeToString())]
        if self.retry_after is not None:
            # A pushback of 0 hangs Python clients until their deadline; 1 ms doesn't.
            metadata.append(("grpc-retry-pushback-ms", str(max(1, round(self.retry_after * 1000)))))
        return tuple(metadata)

    def _all_details(self) -> list[Message]:
        found = list(self.details)
        if self.violations:
            fields = [
                error_details_pb2.BadRequest.FieldViolation(
                    field=_cut(violation.field, 150), description=_cut(violation.description, 250)
                )
                for violation in self.violations[:MAX_VIOLATIONS]
            ]
            found.append(error_details_pb2.BadRequest(field_violations=fields))
        if self.retry_after is not None:
            delay = Duration()
            delay.FromNanoseconds(round(self.retry_after * 1e9))
            found.append(error_details_pb2.RetryInfo(retry_delay=delay))
        return found


_CODES: dict[type[BaseException], grpc.StatusCode] = {
    errors.InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnknownName: grpc.StatusCode.NOT_FOUND,
    errors.PreconditionFailed: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NotServing: grpc.StatusCode.UNAVAILABLE,
    errors.Damaged: grpc.StatusCode.DATA_LOSS,
    errors.Conflict: grpc.StatusCode.ABORTED,
    errors.TooLate: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
}


def refusal(error: BaseException) -> Refusal | None:
    """What callers are told of an error that was raised on purpose; None for any other."""
    code = next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), None)
    if code is None:
        return None
    base = Refusal(code, _cut(str(error), MAX_MESSAGE_BYTES))
    match error:
        case errors.InvalidInput():
            return replace(base, violations=error.violations)
        case InputError():
            return replace(base, violations=(errors.Violation(error.field, error.description),))
        case errors.UnknownName():
            return replace(base, details=(_resource(error),))
        case errors.PreconditionFailed():
            return replace(base, details=(_precondition(error),))
        case errors.Overloaded() | errors.NotServing():
            return replace(base, retry_after=error.retry_after)
        case _:
            return base


def internal(error_id: str) -> Refusal:
    """What callers are told of a fault of ours: an id to quote, never a stack."""
    message = f"internal error {error_id}; the server's log has the details under this id"
    return Refusal(grpc.StatusCode.INTERNAL, message)


def new_error_id() -> str:
    """An id that ties what a caller sees to a line of the log."""
    return uuid.uuid4().hex[:16]


def _resource(error: errors.UnknownName) -> Message:
    info: Message = error_details_pb2.ResourceInfo(
        resource_type=error.kind, resource_name=_cut(error.name, 200), description=_cut(str(error), 300)
    )
    return info


def _precondition(error: errors.PreconditionFailed) -> Message:
    violation = error_details_pb2.PreconditionFailure.Violation(
        type=error.kind, subject=_cut(error.subject, 200), description=_cut(str(error), 300)
    )
    failure: Message = error_details_pb2.PreconditionFailure(violations=[violation])
    return failure


def _cut(text: str, limit: int) -> str:
    """`text` in at most `limit` bytes of UTF-8."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit:
        return encoded.decode()
    return encoded[: limit - 3].decode("utf-8", "ignore") + "…"
