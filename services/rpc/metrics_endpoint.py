"""The HTTP endpoint that Prometheus scrapes: by TLS where the server's calls are."""

import logging
import socket
import ssl
import sys
import threading
from io import BufferedIOBase
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import ThreadingWSGIServer, make_wsgi_app

from services.rpc.options import Security
from services.rpc.reloading import Reloading
from services.rpc.tls import newest_context, open_context, tls_files

if TYPE_CHECKING:
    from typing_extensions import Buffer

PATIENCE_S = 10.0
"""How long a scraper may be silent in its handshake, its request, or while it takes the answer."""

log = logging.getLogger("services.rpc.metrics_endpoint")


class MetricsEndpoint:
    """Listens from the start, and answers in threads of its own."""

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, security: Security | None = None
    ) -> None:
        """Of `security` it has the certificate and the callers' CA, and no tokens.

        Raises OSError if the port is taken, OptionError for files that can't be used.
        """
        files = tls_files(security or Security())
        self._server = _Server(host, port, open_context(files) if files else None)
        self._server.set_app(make_wsgi_app(registry))
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Frees the port; blocks for up to half a second."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Answer(BufferedIOBase):
    """What a scraper is sent. However one hangs up, by TLS, too, it is what wsgiref takes for no news."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def write(self, data: "Buffer") -> int:
        try:
            self._connection.sendall(data)
        except OSError as error:
            raise ConnectionAbortedError(str(error)) from error
        return memoryview(data).nbytes


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE_S

    def setup(self) -> None:
        super().setup()
        self.wfile = _Answer(self.connection)

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are no news."""


class _Server(ThreadingWSGIServer):
    """Shakes hands in each connection's thread: prometheus-client's own waits for who is silent."""

    request_queue_size = 128  # of connections that come at once; beyond it they try again a second later

    def __init__(self, host: str, port: int, certificate: Reloading[ssl.SSLContext] | None) -> None:
        family, *_, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.address_family = family
        self._certificate = certificate
        super().__init__((str(found[0]), port), _Handler)
        if certificate is not None:
            self.socket = newest_context(certificate).wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )

    def get_request(self) -> tuple[socket.socket, Any]:
        """Each scrape sees the files as they are."""
        if self._certificate is not None:
            self._certificate.refresh()
        return super().get_request()

    def handle_error(self, request: object, client_address: tuple[object, ...]) -> None:
        """A caller that doesn't speak TLS, has no certificate or hangs up."""
        log.debug("%s: %r", client_address[0], sys.exception())
