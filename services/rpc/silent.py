"""Who sends nothing is cut off: a stream of requests waits for its caller no longer than a stated time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from services.errors import Silent
from services.rpc.calls import Intake

if TYPE_CHECKING:
    from services.rpc.calls import Reader

owes: ContextVar[Callable[[], bool] | None] = ContextVar("owes", default=None)
"""Tells whether the call that is served has still to answer what it was sent: its caller may wait."""
LOOKS = 4
"""How often it is asked, in the time that a caller may be silent."""


class SilentStreams(Intake):
    """Ends streams of requests in which none has come for so long while no answer was owed."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def taking(self, read: "Reader", by_stream: bool) -> Callable[[Any], object] | None:
        """The same requests. Raises Silent in the place of one that doesn't come."""
        return self._each if by_stream else None

    async def _each(self, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        coming = aiter(stream)
        while True:
            try:
                async with _within(self._seconds, owes.get()):
                    request = await anext(coming, None)
            except TimeoutError:
                raise Silent(f"nothing was sent for {self._seconds:g} s; begin another stream") from None
            if request is None:
                return
            yield request


@asynccontextmanager
async def _within(seconds: float, owed: Callable[[], bool] | None) -> AsyncIterator[None]:
    """Raises TimeoutError `seconds` after it began, or after the last look that found something owed."""
    async with asyncio.timeout(seconds) as limit:
        if owed is None:
            yield
            return
        loop, pause = asyncio.get_running_loop(), seconds / LOOKS
        looking: asyncio.TimerHandle

        def look() -> None:
            nonlocal looking
            looking = loop.call_later(pause, look)
            if owed():
                limit.reschedule(loop.time() + seconds + pause)

        looking = loop.call_later(pause, look)
        try:
            yield
        finally:
            looking.cancel()
