"""Whose a call is, and until when it is waited for."""

import time
from typing import TYPE_CHECKING

from services.rpc.tokens import identity

if TYPE_CHECKING:
    from services.rpc.calls import Context

CALLER_KEY = "x-plaudit-caller"
MAX_CALLER = 640
"""Characters of a caller's name that count: issuer, subject, and a name that a client may give."""


def deadline_of(context: "Context") -> float | None:
    """The `time.monotonic()` at which the caller gives up; None if it never does."""
    remaining = context.time_remaining()  # None at runtime without a deadline, whatever its annotation says
    return None if remaining is None else time.monotonic() + remaining


def caller_of(context: "Context") -> str:
    """Whose call it is, for sharing fairly: who it is shown to be, and nobody else by names that it gives.

    Whom it names is a caller, too, where it speaks for others. Where nobody is asked, or all show the same
    token, it is the name given, else the connection.
    """
    told = _told_caller(context)
    found = identity.get()
    if found is None or not found.name:
        return told or str(context.peer())
    return found.name_of(told)


def _told_caller(context: "Context") -> str:
    for key, value in context.invocation_metadata() or ():
        if key == CALLER_KEY and isinstance(value, str):
            return value[:MAX_CALLER]
    return ""
