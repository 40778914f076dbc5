"""Clients of the trainer, which drives the other services."""

from plaudit.clients import from_proto
from plaudit.clients.calls import AsyncClient, Client
from plaudit.clients.channel import Method
from plaudit.clients.data import Run
from plaudit.v1.trainer_pb2 import GetRunRequest, GetRunResponse

GET_RUN: Method[GetRunRequest, GetRunResponse] = Method("plaudit.v1.TrainerService", "GetRun", GetRunResponse)


class TrainerClient(Client):
    """Asks a trainer how its run is doing."""

    _service = "trainer"

    def get_run(self, *, timeout: float | None = None) -> Run:
        """The run of the trainer's process."""
        return from_proto.run(self._call(GET_RUN, GetRunRequest(), timeout))


class AsyncTrainerClient(AsyncClient):
    """TrainerClient to be awaited."""

    _service = "trainer"

    async def get_run(self, *, timeout: float | None = None) -> Run:
        """As TrainerClient.get_run."""
        return from_proto.run(await self._call(GET_RUN, GetRunRequest(), timeout))
