"""What a service can refuse, without a word of gRPC (services/rpc/status.py maps it to status codes).

ServiceError
├── InvalidInput         INVALID_ARGUMENT     a value is wrong; carries field violations
├── UnknownName          NOT_FOUND            an id or name that does not exist
├── PreconditionFailed   FAILED_PRECONDITION  right request, wrong state (a step that isn't loaded)
├── Overloaded           RESOURCE_EXHAUSTED   a queue is full; carries when to come back
│   ├── QuotaExceeded    RESOURCE_EXHAUSTED   the caller has had its share; carries when to come back
│   └── NotRead          RESOURCE_EXHAUSTED   the caller doesn't read what it is sent
├── NotServing           UNAVAILABLE          loading or draining; carries when to come back
│   └── Silent               UNAVAILABLE          the caller sends nothing; another stream may begin at once
├── Damaged              DATA_LOSS            a digest doesn't match
├── Conflict             ABORTED              somebody else is doing it already
├── TooLate              DEADLINE_EXCEEDED    the deadline can't be met
├── Unauthenticated      UNAUTHENTICATED      nobody knows who calls
└── PermissionDenied     PERMISSION_DENIED    the caller is known, and may not do this
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """A field path in the request, and what is wrong with it and would be right."""

    field: str
    description: str


class ServiceError(Exception):
    """Root of everything a service refuses on purpose."""


class InvalidInput(ServiceError):
    """A value is wrong."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = tuple(violations)

    @classmethod
    def at(cls, field: str, description: str) -> "InvalidInput":
        """The common case of one field."""
        return cls([Violation(field, description)])


class UnknownName(ServiceError):
    """An id or name does not exist."""

    def __init__(self, kind: str, name: str, known: Sequence[str] = (), fix: str = "") -> None:
        """`known` are the names there are, where they may be told; `fix` is what to do."""
        there_is = f"; there is {', '.join(known)}" if known else ""
        super().__init__(f"no {kind} {name!r} here{there_is}" + (f"; {fix}" if fix else ""))
        self.kind = kind
        self.name = name


class PreconditionFailed(ServiceError):
    """The request is right but doesn't fit the state; `kind` is a stable word such as STEP or MANIFEST."""

    def __init__(self, kind: str, subject: str, description: str) -> None:
        super().__init__(description)
        self.kind = kind
        self.subject = subject

    @classmethod
    def at(cls, kind: str, field: str, description: str) -> "PreconditionFailed":
        """About one field of the request, as InvalidInput.at."""
        return cls(kind, field, f"{field}: {description}")


class Overloaded(ServiceError):
    """A queue is full; try again after `retry_after` seconds."""

    def __init__(self, description: str, retry_after: float = 0.5) -> None:
        super().__init__(description)
        self.retry_after = retry_after


class QuotaExceeded(Overloaded):
    """The caller has had its share; others are served. Try again after `retry_after` seconds."""


class NotRead(Overloaded):
    """The caller doesn't read what it is sent, and others shall not wait for it."""


class NotServing(ServiceError):
    """The service loads or drains; try again after `retry_after` seconds, perhaps elsewhere."""

    def __init__(self, description: str, retry_after: float = 1.0) -> None:
        super().__init__(description)
        self.retry_after = retry_after


class Silent(NotServing):
    """The caller has sent nothing for so long that its stream ends; it may begin another at once."""

    def __init__(self, description: str) -> None:
        super().__init__(description, retry_after=0.0)


class Damaged(ServiceError):
    """Bytes that arrived are not the bytes that were announced."""


class Conflict(ServiceError):
    """Another caller holds what this one wants."""


class TooLate(ServiceError):
    """The deadline has passed, or can't be met."""


class Unauthenticated(ServiceError):
    """Nobody knows who calls: no token or certificate, or one that opens nothing."""


class PermissionDenied(ServiceError):
    """The caller is known, and may not do this."""
