"""How many bytes of bodies the gateway holds at a time; a body that finds no room is turned away.

Choudhury and Hahne 1998, as in services/room.py: how large a body may be goes by what is free, so that
callers with much can't shut out those with little.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

from services.gateway.problems import ProblemError

ROOM_BYTES = 32 * 1024 * 1024
"""Of all bodies that are read or served. As objects they take up to twenty times as much."""
RETRY_AFTER_S = 1.0


class BodyRoom:
    """Counts bytes as they come, whatever was announced, until their request is answered."""

    def __init__(self) -> None:
        self._held = 0

    @contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """For as long as a body is held; what it gives takes more bytes of it in, or raises ProblemError."""
        size = 0

        def take(more: int) -> None:
            nonlocal size
            if size + more > ROOM_BYTES - self._held - more:  # it would find no room a second time
                words = f"bodies of {self._held:,} bytes are here already; try again later"
                raise ProblemError(
                    HTTPStatus.TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED", words, retry_after=RETRY_AFTER_S
                )
            size += more
            self._held += more

        try:
            yield take
        finally:
            self._held -= size
