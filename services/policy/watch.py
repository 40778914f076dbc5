"""Tells who watches which weights serve now. No gRPC, no protos, no torch."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from services.errors import NotServing, Overloaded
from services.policy.interface import Version

MOST_WATCHERS = 64
COME_BACK_SECONDS = 5.0


class VersionWatchers:
    """Everyone who watches, each at a pace of its own. All methods belong to one event loop."""

    def __init__(self, most: int = MOST_WATCHERS) -> None:
        self._most = most
        self._wakers: set[asyncio.Event] = set()

    def wake(self) -> None:
        """The version has changed."""
        for waker in self._wakers:
            waker.set()

    async def versions(
        self, current: Callable[[], Version], closing: asyncio.Event
    ) -> AsyncGenerator[Version, None]:
        """What is current now, then whenever it is another: the newest only for who was slow.

        Raises NotServing once `closing` is set, Overloaded if too many watch already.
        """
        if len(self._wakers) >= self._most:
            raise Overloaded(f"{self._most} watch the version already", COME_BACK_SECONDS)
        changed, told = asyncio.Event(), None
        self._wakers.add(changed)
        ending = asyncio.create_task(closing.wait())
        ending.add_done_callback(lambda _: changed.set())
        try:
            while not closing.is_set():
                changed.clear()
                if (version := current()) != told:
                    told = version
                    yield version
                await changed.wait()
            raise NotServing("the server is shutting down")
        finally:
            self._wakers.discard(changed)
            ending.cancel()
