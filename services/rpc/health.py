"""Liveness and readiness, apart: "" says the process lives, each full service name that it serves."""

from collections.abc import Sequence

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_health.v1.health import aio as health_aio  # type: ignore[import-untyped]

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """The health service of one server."""

    def __init__(self, full_names: Sequence[str]) -> None:
        self._full_names = full_names
        self._servicer = health_aio.HealthServicer()

    async def register(self, server: aio.Server) -> None:
        """Adds the service: alive, not ready."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        await self.set_ready(False)

    async def set_ready(self, ready: bool) -> None:
        """Tells every watcher; liveness isn't touched."""
        for name in self._full_names:
            await self._servicer.set(name, _SERVING if ready else _NOT_SERVING)
