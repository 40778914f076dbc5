"""The gateway as a server: bound first, drained when asked."""

import asyncio
import contextlib
import errno
import logging
import math
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Literal

import uvicorn
from starlette.types import ASGIApp

from plaudit.clients import InvalidArgument
from services.gateway.access import HealthAlone
from services.gateway.app import gateway_app
from services.gateway.connection import Connection
from services.gateway.metrics import HttpMetrics
from services.gateway.upstream import Upstream
from services.rpc.guard import open_files, open_issuer
from services.rpc.metrics_endpoint import MetricsEndpoint
from services.rpc.options import OptionError, ServerOptions, join_address, parse_address
from services.rpc.texts import ANNOUNCEMENT
from services.rpc.tls import newest_context, open_context

log = logging.getLogger("services.gateway.server")

BACKLOG = 2048
KEEP_ALIVE_S = 75
"""Longer than the minute after which clients and load balancers drop an idle connection: if the server did
it first, a request could be on its way already."""


class Gateway:
    """The port of the API, and where they are asked for those of health and metrics."""

    def __init__(self, reward: Sequence[str], options: ServerOptions) -> None:
        """Listens already. Raises OptionError, and OSError where an address can't be had."""
        options.check()
        metrics = HttpMetrics()
        # PLAUDIT_TOKEN is the gateway's own, and opens nothing here.
        self._tokens, self._certificate = open_files(options.security, None, metrics, open_context)
        self._issuer = open_issuer(options.security, metrics)
        tokens, certificate = self._tokens, self._certificate
        callers = None if tokens is None else lambda: tokens.value
        app = gateway_app(_upstream(reward, options), metrics, callers, self._issuer, options.log_texts)
        if options.log_texts:
            log.warning(ANNOUNCEMENT)
        tls = None if certificate is None else newest_context(certificate)
        self._api = HttpServer(app, options.address, options.grace_s, tls)
        self._health: HttpServer | None = None
        self._metrics: MetricsEndpoint | None = None
        self.metrics_address: str | None = None
        """HOST:PORT of metrics alone, if it was asked for."""
        if options.health_address is not None:
            self._health = HttpServer(
                HealthAlone(app), options.health_address, options.grace_s, lifespan="off"
            )
        if options.metrics_address is not None:
            host, port = parse_address(options.metrics_address, "--metrics-address")
            with _said_of(options.metrics_address):
                self._metrics = MetricsEndpoint(host, port, metrics.registry, options.metrics_security)
                self.metrics_address = join_address(host, self._metrics.port)

    @property
    def address(self) -> str:
        """HOST:PORT of the API."""
        return self._api.address

    @property
    def health_address(self) -> str | None:
        """HOST:PORT of health alone, if it was asked for."""
        return self._health.address if self._health else None

    async def run_until_asked(self) -> None:
        """Serves until `ask_to_stop`; requests in flight then get their grace."""
        watched = (self._tokens, self._certificate, self._issuer)
        watches = [asyncio.create_task(each.watch()) for each in watched if each]
        try:
            await asyncio.gather(*(each.run_until_asked() for each in self._servers()))
        finally:
            for watch in watches:
                watch.cancel()
            if self._metrics:
                await asyncio.to_thread(self._metrics.close)

    def ask_to_stop(self) -> None:
        """Drains; the second time it doesn't wait."""
        for each in self._servers():
            each.ask_to_stop()

    def _servers(self) -> "list[HttpServer]":
        return [self._api, *([self._health] if self._health else [])]


class HttpServer(uvicorn.Server):
    """uvicorn on a socket of ours, and leaving signals to us: its own way to end isn't exit code 0."""

    def __init__(
        self,
        app: ASGIApp,
        address: str,
        grace_s: float,
        tls: ssl.SSLContext | None = None,
        lifespan: Literal["on", "off"] = "on",
    ) -> None:
        """Listens already. Raises OSError where the address can't be had."""
        self._socket = _listen(address)
        self.address = join_address(*self._socket.getsockname()[:2])
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ssl_context_factory=None if tls is None else lambda *_: tls,
                lifespan=lifespan,
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(grace_s),
            )
        )

    async def run_until_asked(self) -> None:
        """Serves until `should_exit` is set; requests in flight then get their grace."""
        await self.serve([self._socket])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield

    def ask_to_stop(self) -> None:
        """Drains; the second time it doesn't wait."""
        self.force_exit = self.should_exit
        self.should_exit = True


@contextlib.asynccontextmanager
async def start_gateway(
    reward: Sequence[str], options: ServerOptions | None = None
) -> AsyncIterator[Gateway]:
    """A running gateway for tests and for use within a process."""
    gateway = Gateway(reward, options or ServerOptions())
    running = asyncio.create_task(gateway.run_until_asked())
    try:
        yield gateway
    finally:
        gateway.ask_to_stop()
        await running


async def serve(reward: Sequence[str], options: ServerOptions) -> int:
    """Serves until SIGTERM or SIGINT; returns the process's exit code."""
    try:
        gateway = Gateway(reward, options)
    except OptionError as error:
        return _fail(str(error), os.EX_USAGE)
    except OSError as error:
        hint = "; choose another port" if error.errno == errno.EADDRINUSE else ""
        return _fail(f"can't listen on {error.filename}: {error.strerror}{hint}", os.EX_UNAVAILABLE)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, gateway.ask_to_stop)
    print(f"listening on {gateway.address}", flush=True)
    if gateway.metrics_address:
        print(f"metrics on {gateway.metrics_address}", flush=True)
    if gateway.health_address:
        print(f"health on {gateway.health_address}", flush=True)
    await gateway.run_until_asked()
    return os.EX_OK


def _upstream(reward: Sequence[str], options: ServerOptions) -> Upstream:
    """Lends the gateway's own token only where the gateway asks who calls; else it passes callers' on.

    Raises OptionError.
    """
    token, file, asks = "", None, options.security.names_callers
    if asks:
        token, file = options.token or "", options.token_file
    try:
        return Upstream(list(reward), token, options.insecure, file, passes_on=not asks)
    except InvalidArgument as error:
        raise OptionError(f"--reward: {error.reason}") from None


def _listen(address: str) -> socket.socket:
    host, port = parse_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol: for a socket without one asyncio leaves Nagle on, and answers wait 40 ms for an ACK.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with _said_of(address):
        listening.bind((host, port))
        listening.listen(BACKLOG)
    return listening


@contextlib.contextmanager
def _said_of(address: str) -> Iterator[None]:
    """Raises OSError that says which of several addresses it is."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, address) from None


def _fail(message: str, code: int) -> int:
    print(f"gateway: {message}", file=sys.stderr, flush=True)
    return code
