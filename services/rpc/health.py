"""Liveness and readiness, apart: "" says the process lives, each full service name that it serves."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2_grpc  # type: ignore[import-untyped]
from grpc_health.v1.health_pb2 import (  # type: ignore[import-untyped]
    HealthCheckRequest,
    HealthCheckResponse,
)

if TYPE_CHECKING:
    from services.rpc.calls import Context

MOST_WATCHERS = 1000
"""Who may watch is anybody, and each costs some memory for as long as it does."""


class Health:
    """The health service of one server."""

    def __init__(self, full_names: Sequence[str]) -> None:
        self._full_names = full_names
        self._servicer = _HealthServicer()

    async def register(self, server: aio.Server) -> None:
        """Adds the service: alive, not ready."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        await self.set_ready(False)

    async def set_ready(self, ready: bool) -> None:
        """Tells every watcher; liveness isn't touched."""
        status = HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING
        self._servicer.set(self._full_names, status)


class _HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """In the place of gRPC's own, which forgets all watchers of a name when one of them leaves, and makes
    those who tell it of a change wait for a watcher that doesn't read.
    """

    def __init__(self) -> None:
        self._statuses = {"": HealthCheckResponse.SERVING}
        self._changed = asyncio.Event()
        """Set at the next change, which puts a new one in its place: watchers share nothing else ..."""
        self._watchers = 0
        """... but their number."""

    def set(self, names: Sequence[str], status: int) -> None:
        """Tells whoever watches one of these."""
        self._statuses.update(dict.fromkeys(names, status))
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: HealthCheckRequest, context: "Context") -> HealthCheckResponse:
        """How it stands now; NOT_FOUND for a name that isn't served."""
        if request.service not in self._statuses:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return HealthCheckResponse(status=self._statuses[request.service])

    async def Watch(
        self, request: HealthCheckRequest, context: "Context"
    ) -> AsyncIterator[HealthCheckResponse]:
        """How it stands now, and from then on each time that it has changed, until the watcher leaves.

        Of changes that follow each other faster than they can be sent, the last is told. RESOURCE_EXHAUSTED
        where too many watch already.
        """
        if self._watchers >= MOST_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch already; use Check")
        self._watchers += 1
        try:
            told = None
            while True:
                changed = self._changed  # before the look: what changes after it isn't missed
                status = self._statuses.get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)
                if status != told:
                    yield HealthCheckResponse(status=status)
                    told = status
                await changed.wait()
        finally:
            self._watchers -= 1
