"""What is known of a stream in both directions while it is open."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic

from plaudit.clients.budget import Budget
from plaudit.clients.channel import ResponseT
from plaudit.clients.errors import PlauditError, Where


@dataclass(frozen=True)
class OpenedStream(Generic[ResponseT]):
    """A stream in both directions that has begun."""

    responses: Iterator[ResponseT]
    """Waits for each; raises grpc.RpcError."""
    cancel: Callable[[], object]
    """Ends it at once; safe from any thread."""
    where: Where
    is_connected: Callable[[], bool]
    note: Callable[[PlauditError | None], None]
    """Hears of a failure, or of an answer: by these its address has turns."""
    is_outdated: Callable[[], bool]
    """Whether a stream that began now would show another token."""
    budget: Budget
    """Of what is opened again in vain."""
