"""Clients of the trainer, which drives the other services."""

import asyncio
from collections.abc import AsyncIterator, Iterator

from plaudit.clients import from_proto
from plaudit.clients.calls import AsyncClient, Client
from plaudit.clients.channel import Method
from plaudit.clients.data import Run, RunEvent
from plaudit.clients.errors import PlauditError
from plaudit.clients.following import PAUSE_SECONDS, WATCH_SECONDS, Patience
from plaudit.v1.trainer_pb2 import (
    GetRunRequest,
    GetRunResponse,
    StopRunRequest,
    StopRunResponse,
    WatchRunRequest,
    WatchRunResponse,
)

SERVICE = "plaudit.v1.TrainerService"
GET_RUN: Method[GetRunRequest, GetRunResponse] = Method(SERVICE, "GetRun", GetRunResponse)
WATCH_RUN: Method[WatchRunRequest, WatchRunResponse] = Method(SERVICE, "WatchRun", WatchRunResponse)
STOP_RUN: Method[StopRunRequest, StopRunResponse] = Method(SERVICE, "StopRun", StopRunResponse)

ENDED = ("finished", "stopped", "failed")


class _Following:
    """Where a follower stands, over streams that end."""

    def __init__(self, patience: float) -> None:
        self.patience = Patience(patience)
        self._event: RunEvent | None = None

    @property
    def request(self) -> WatchRunRequest:
        """Goes on after the last event."""
        if self._event is None:
            return WatchRunRequest()
        return WatchRunRequest(run_id=self._event.run.run_id, after=self._event.number)

    @property
    def has_ended(self) -> bool:
        """Whether the run is over, so that nothing more can come."""
        return self._event is not None and self._event.run.state in ENDED

    def take(self, response: WatchRunResponse) -> RunEvent:
        """The event of a message."""
        self.patience.answered()
        self._event = RunEvent(response.number, from_proto.run(response.run))
        return self._event


class TrainerClient(Client):
    """Asks a trainer how its run is doing."""

    _service = "trainer"

    def get_run(self, *, timeout: float | None = None) -> Run:
        """The run of the trainer's process."""
        return from_proto.run(self._call(GET_RUN, GetRunRequest(), timeout).run)

    def watch_run(self, *, patience: float = 60.0) -> Iterator[RunEvent]:
        """What happened so far, as far as it is kept, then each event as it happens, until the run has ended.

        A trainer that goes away is waited for `patience` seconds, and may come back as another run that
        goes on from a checkpoint. Raises a PlauditError.
        """
        following = _Following(patience)
        while not following.has_ended:
            try:
                for response in self._receive(WATCH_RUN, following.request, WATCH_SECONDS):
                    yield following.take(response)
            except PlauditError as failure:
                following.patience.bear(failure)
            if not following.has_ended and self._closed.wait(PAUSE_SECONDS):
                return

    def stop_run(self, *, timeout: float | None = None) -> Run:
        """Asks the run to end after the step under way, with a checkpoint; returns it as it is now."""
        return from_proto.run(self._call(STOP_RUN, StopRunRequest(), timeout).run)


class AsyncTrainerClient(AsyncClient):
    """TrainerClient to be awaited."""

    _service = "trainer"

    async def get_run(self, *, timeout: float | None = None) -> Run:
        """As TrainerClient.get_run."""
        return from_proto.run((await self._call(GET_RUN, GetRunRequest(), timeout)).run)

    async def watch_run(self, *, patience: float = 60.0) -> AsyncIterator[RunEvent]:
        """As TrainerClient.watch_run."""
        following = _Following(patience)
        while not following.has_ended:
            try:
                async for response in self._receive(WATCH_RUN, following.request, WATCH_SECONDS):
                    yield following.take(response)
            except PlauditError as failure:
                following.patience.bear(failure)
            if not following.has_ended:
                await asyncio.sleep(PAUSE_SECONDS)

    async def stop_run(self, *, timeout: float | None = None) -> Run:
        """As TrainerClient.stop_run."""
        return from_proto.run((await self._call(STOP_RUN, StopRunRequest(), timeout)).run)
