"""What a call can end with instead of an answer.

    PlauditError                          root; has service, target, method, request_id and the rest below
    ├── InvalidArgument     a value is wrong: `violations` name the fields
    ├── NotFound            an id or name doesn't exist: `resource`
    ├── FailedPrecondition  right request, wrong state, such as a step that isn't loaded: `preconditions`
    ├── Overloaded          the service's queue is full: `retry_after` seconds
    ├── Unavailable         the service is loading or draining: `retry_after` seconds
    │   └── Unreachable     nobody answers at the address
    │       └── NotSecure   somebody does, but the two sides don't trust each other: certificates, TLS
    ├── DeadlineExceeded    no answer in time
    ├── DataLoss            bytes that arrived are not those that were announced
    ├── Aborted             another caller is doing it already
    ├── Unauthenticated     no token, or one that isn't known
    │   └── PermissionDenied  a token that isn't good for this
    ├── Unimplemented       the server doesn't have this method: mostly the address of another service
    └── Internal            anything else; the service's log has more under `request_id`

The gRPC error is the exception's `__cause__`. A value that can't even be sent is an InvalidArgument
without a service.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from plaudit.clients.handshakes import handshake_failure, unreachable

STATUS_DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"

DetailT = TypeVar("DetailT", bound=Message)


@dataclass(frozen=True)
class Violation:
    """A field path such as "prompts[3].token_ids.ids[17]", and what is wrong with it and would be right."""

    field: str
    description: str


@dataclass(frozen=True)
class Precondition:
    """A state that was asked for and isn't there; `kind` is a stable word such as STEP."""

    kind: str
    subject: str
    description: str


@dataclass(frozen=True)
class Resource:
    """What was not found."""

    kind: str
    name: str


@dataclass(frozen=True)
class ItemFailure:
    """Why one item of a batch has no result, while its neighbours have theirs."""

    code: str
    """Name of the gRPC status code, such as "INVALID_ARGUMENT"."""
    message: str
    violations: tuple[Violation, ...] = ()


@dataclass(frozen=True)
class Where:
    """The call that failed."""

    service: str
    """"policy", "weights", "reference", "reward" or "trainer"."""
    target: str
    """host:port"""
    method: str
    request_id: str
    has_tls: bool = False


@dataclass(frozen=True)
class Details:
    """What the service said beside its message (google.rpc.Status)."""

    violations: tuple[Violation, ...] = ()
    preconditions: tuple[Precondition, ...] = ()
    resource: Resource | None = None
    retry_after: float | None = None
    request_id: str | None = None


class PlauditError(Exception):
    """Root of the tree in this module's docstring."""

    advice: ClassVar[str] = ""

    def __init__(self, reason: str, where: Where | None = None, details: Details | None = None) -> None:
        super().__init__(reason, where, details)  # all of them, so that the error can be pickled
        self.reason = reason
        self.where = where
        details = details or Details()
        self.violations = details.violations
        self.preconditions = details.preconditions
        self.resource = details.resource
        self.retry_after = details.retry_after
        """Seconds after which the service wants to be asked again; inf for never, None if it doesn't say."""
        self.request_id = details.request_id or (where.request_id if where else "")
        """Names the call in the service's log."""

    def __str__(self) -> str:
        place = f"{self.where.service} at {self.where.target}: {self.where.method}: " if self.where else ""
        advice = self.advice.format(self=self)
        return place + self.reason + (f" ({advice})" if advice else "")

    @classmethod
    def of_item(cls, failure: ItemFailure) -> "PlauditError":
        """The error of one item as an exception of the same tree."""
        kind = _BY_CODE.get(failure.code, Internal)
        return kind(failure.message, details=Details(violations=failure.violations))


class InvalidArgument(PlauditError):
    """A value is wrong; `violations` say which and how."""

    @classmethod
    def at(cls, field: str, description: str) -> "InvalidArgument":
        """A value that can't be sent, found before any service was asked."""
        return cls(f"{field}: {description}", details=Details(violations=(Violation(field, description),)))

    def of_one_item(self) -> ItemFailure:
        """The same of one item among others; of_item is the way back."""
        return ItemFailure("INVALID_ARGUMENT", self.reason, self.violations)


class NotFound(PlauditError):
    """An id or name doesn't exist."""


class FailedPrecondition(PlauditError):
    """The request is right but doesn't fit the state of the service."""


class Overloaded(PlauditError):
    """The service's queue is full."""

    advice = "send fewer calls at once, or try again later"


class Unavailable(PlauditError):
    """The service is loading or draining."""

    advice = "try again later"


class Unreachable(Unavailable):
    """Nobody answers at the address."""

    advice = "is the service running, and is this its address?"


class NotSecure(Unreachable):
    """The connection can't be secured: another certificate is needed, or TLS where there is none."""

    advice = ""


class DeadlineExceeded(PlauditError):
    """No answer in time."""

    advice = "allow more with timeout=, or ask for less in one call"


class DataLoss(PlauditError):
    """The bytes that arrived are not those that were announced."""


class Aborted(PlauditError):
    """Another caller is doing it already."""


class Unauthenticated(PlauditError):
    """No token, or one that isn't known."""

    advice = "set PLAUDIT_TOKEN or PLAUDIT_TOKEN_FILE, or give token="


class PermissionDenied(Unauthenticated):
    """The token isn't good for this."""

    advice = "use a token that has the scope"


class Unimplemented(PlauditError):
    """The server doesn't have this method."""

    advice = "is this the address of another service, or of an older version?"


class Internal(PlauditError):
    """The service failed in a way it doesn't explain."""

    advice = "request id {self.request_id}, by which the service's log has it"


_BY_CODE: dict[str, type[PlauditError]] = {
    "INVALID_ARGUMENT": InvalidArgument,
    "OUT_OF_RANGE": InvalidArgument,
    "NOT_FOUND": NotFound,
    "FAILED_PRECONDITION": FailedPrecondition,
    "RESOURCE_EXHAUSTED": Overloaded,
    "UNAVAILABLE": Unavailable,
    "CANCELLED": Unavailable,  # by the service: it ends, and cuts off what is under way
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "DATA_LOSS": DataLoss,
    "ABORTED": Aborted,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    "UNIMPLEMENTED": Unimplemented,
}


def from_rpc(
    error: grpc.RpcError, where: Where, is_connected: Callable[[], bool], elapsed: float
) -> PlauditError:
    """The exception for a call that ended with `error` after `elapsed` seconds; sync and aio alike.

    `is_connected`: whether the channel has a connection now, which tells a service that says
    UNAVAILABLE from one that isn't there, and a slow one from one that was never reached.
    """
    code, words = error.code(), error.details() or ""
    trailers = dict(cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ()))
    details = _details(trailers.get(STATUS_DETAILS_KEY))
    if details.retry_after is None and (pushback := trailers.get(PUSHBACK_KEY)) is not None:
        details = replace(details, retry_after=_pushback_seconds(pushback))
    if trailers:  # only a service sends any
        reason = reason_of(details.violations, words) or code.name
        return _BY_CODE.get(code.name, Internal)(reason, where, details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in words:
        return InvalidArgument(f"{words}; ask for less in one call", where)
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED) and not is_connected():
        if (insecure := handshake_failure(words, where.target, where.has_tls)) is not None:
            return NotSecure(insecure, where)
        return Unreachable(f"not reachable for {elapsed:.1f} s: {unreachable(words, where.has_tls)}", where)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"no answer within {elapsed:.1f} s", where)
    return _BY_CODE.get(code.name, Internal)(words or code.name, where)


def reason_of(violations: Iterable[Violation], otherwise: str) -> str:
    """All of them in a line, or `otherwise` if there are none."""
    return "; ".join(f"{each.field}: {each.description}" for each in violations) or otherwise


def _pushback_seconds(milliseconds: str | bytes) -> float:
    """What servers without our details say; anything but a number from 0 on is a no."""
    text = milliseconds if isinstance(milliseconds, str) else ""
    return int(text) / 1000 if text.isdecimal() else math.inf


def _details(packed: str | bytes | None) -> Details:
    """What the service said beside its message; nothing if it said nothing, or nothing legible."""
    try:
        return _read_details(status_pb2.Status.FromString(packed)) if isinstance(packed, bytes) else Details()
    except DecodeError:
        return Details()


def _read_details(status: status_pb2.Status) -> Details:
    bad_request = _unpack(status, error_details_pb2.BadRequest)
    failure = _unpack(status, error_details_pb2.PreconditionFailure)
    resource = _unpack(status, error_details_pb2.ResourceInfo)
    retry = _unpack(status, error_details_pb2.RetryInfo)
    request = _unpack(status, error_details_pb2.RequestInfo)
    return Details(
        violations=tuple(Violation(v.field, v.description) for v in bad_request.field_violations)
        if bad_request
        else (),
        preconditions=tuple(Precondition(v.type, v.subject, v.description) for v in failure.violations)
        if failure
        else (),
        resource=Resource(resource.resource_type, resource.resource_name) if resource else None,
        retry_after=retry.retry_delay.ToTimedelta().total_seconds() if retry else None,
        request_id=request.request_id if request else None,
    )


def _unpack(status: status_pb2.Status, kind: type[DetailT]) -> DetailT | None:
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            message = kind()
            packed.Unpack(message)
            return message
    return None
