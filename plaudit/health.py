"""The standard health protocol (grpc.health.v1), which every service of ours answers, also while it loads."""

from typing import Literal, TypeAlias

from grpc_health.v1.health_pb2 import (  # type: ignore[import-untyped]
    HealthCheckRequest,
    HealthCheckResponse,
)

from plaudit.clients import NotFound
from plaudit.clients.calls import Client
from plaudit.clients.channel import Method

Health: TypeAlias = Literal["serving", "not serving", "not there"]
CHECK: Method[HealthCheckRequest, HealthCheckResponse] = Method(
    "grpc.health.v1.Health", "Check", HealthCheckResponse
)


class HealthClient(Client):
    """Asks a server how it is."""

    _service = "server"

    def check(self, service: str = "", *, timeout: float | None = None) -> Health:
        """Of a service by its full name, such as plaudit.v1.RewardService; of the process if it is empty.

        Raises a PlauditError; Unimplemented where the server doesn't have the protocol.
        """
        try:
            response = self._call(CHECK, HealthCheckRequest(service=service), timeout)
        except NotFound:
            return "not there"
        return "serving" if response.status == HealthCheckResponse.SERVING else "not serving"
