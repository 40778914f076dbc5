"""Where the pods of a Service are: its EndpointSlices, followed in a thread of their own."""

import ipaddress
import logging
import threading
from collections.abc import Iterable, Iterator

from trainer.cluster.calls import Cluster, Object
from trainer.cluster.errors import ClusterError

PAUSE_S = 5.0
"""Before the API server is asked again, after it couldn't be for as long as Cluster is patient."""

logger = logging.getLogger(__name__)


class EndpointWatch:
    """The ready pods of a Service. While the API server is away, the pods that were known stay known."""

    def __init__(self, cluster: Cluster, service: str, port: str) -> None:
        """`port` is the name or the number of a port of the pods.

        Lists once before it returns. Raises ClusterError.
        """
        self._cluster, self._service, self._port = cluster, service, port
        self._closed = threading.Event()
        slices = self._follow()
        self._addresses = self._ready(next(slices))
        threading.Thread(target=self._keep, args=(slices,), name=f"watch-{service}", daemon=True).start()

    def addresses(self) -> frozenset[str]:
        """host:port of each pod that is ready, as far as is known now."""
        return self._addresses

    def close(self) -> None:
        """Ends the watch, after the request under way."""
        self._closed.set()

    def _follow(self) -> Iterator[list[Object]]:
        return self._cluster.follow("EndpointSlice", labels=f"kubernetes.io/service-name={self._service}")

    def _keep(self, slices: Iterator[list[Object]]) -> None:
        while not self._closed.is_set():
            try:
                for found in slices:
                    if self._closed.is_set():
                        return
                    self._addresses = self._ready(found)
            except ClusterError as error:
                logger.warning("where the pods of %s are isn't known for now: %s", self._service, error)
            self._closed.wait(PAUSE_S)
            slices = self._follow()

    def _ready(self, slices: Iterable[Object]) -> frozenset[str]:
        return frozenset(
            host_port(endpoint["addresses"][0], port)  # the others are fungible, says the API
            for each in slices
            if (port := self._port_number(each)) is not None
            for endpoint in each.get("endpoints") or ()
            if (endpoint.get("conditions") or {}).get("ready", True)
        )

    def _port_number(self, slice_: Object) -> int | None:
        if self._port.isdigit():
            return int(self._port)
        ports = slice_.get("ports") or ()
        return next((int(port["port"]) for port in ports if port.get("name") == self._port), None)


def host_port(host: str, port: int) -> str:
    """An address, with an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ipaddress.ip_address(host).version == 6 else f"{host}:{port}"
