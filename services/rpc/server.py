"""The shell every server wears: bound first, ready when the model is loaded, drained when asked."""

import asyncio
import contextlib
import errno
import gc
import logging
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from grpc import aio
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from lm.errors import InputError, LmError
from services.packages import absence
from services.rpc import tracing
from services.rpc.calls import Chain
from services.rpc.channelz import add_channelz
from services.rpc.guard import Guard
from services.rpc.health import Health
from services.rpc.interceptors import HEALTH, Errors, Metrics, Readiness, RequestIds
from services.rpc.metrics import ServerMetrics
from services.rpc.metrics_endpoint import MetricsEndpoint
from services.rpc.options import (
    MAX_MESSAGE_BYTES,
    MAX_REQUEST_BYTES,
    OptionError,
    ServerOptions,
    is_loopback,
    join_address,
    parse_address,
)
from services.rpc.readable import ReadableRequests
from services.rpc.refused import LetGo
from services.rpc.silent import SilentStreams
from services.rpc.stopping import EXIT_INTERRUPTED, stop_request, watch_parent
from services.rpc.texts import ANNOUNCEMENT, Texts
from services.rpc.unread import UnreadStreams

__all__ = [
    "CHANNEL_OPTIONS", "EXIT_DRAINED", "EXIT_FAILED", "EXIT_INTERRUPTED", "EXIT_OPTIONS", "EXIT_UNAVAILABLE",
    "OptionError", "PortTaken", "RunningServer", "ServerMetrics", "ServerOptions", "Service", "serve",
    "start_server",
]  # fmt: skip

EXIT_DRAINED, EXIT_OPTIONS, EXIT_UNAVAILABLE, EXIT_FAILED = 0, 64, 69, 70

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a second listener
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),  # finds clients that vanished without a word
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # what gRPC 1.85 goes by; its own is 60 s
    # Connections end now and then (gRPC adds 10 % jitter; calls in flight go on), or clients that
    # balance over replicas would never see a new one.
    ("grpc.max_connection_age_ms", 300_000),
    # No call outlives that by more than two hours, not even one of a foreign client that set no deadline, or
    # that never sent its request; our clients' longest is one hour.
    ("grpc.max_connection_age_grace_ms", 7_200_000),
)
MAX_HEALTH_BYTES = 4096
"""Of a message to the port that has nothing but health: it is open to all, and names are short."""
_FLUSH_S = 0.5
"""How long answers that are given already have to leave the server."""
_THREADS_S = 5.0
"""How long a service's threads have to end: the length of one forward, once nobody waits for it."""

log = logging.getLogger("services.rpc.server")


def _is_no_caller_who_left(record: logging.LogRecord) -> bool:
    """gRPC logs as an error, with a stack, that a caller left just before its answer was sent."""
    return not (record.exc_info and isinstance(record.exc_info[1], aio.InternalError))


async def _nothing() -> None:
    """The drain of a service that holds nothing."""


@dataclass
class Service:
    """What a server serves."""

    name: str
    """Short name for people, for example "reward"."""
    full_names: tuple[str, ...]
    """Full proto names, for health and reflection."""
    register: Callable[[aio.Server], None]
    """Adds the servicers to the server; called before the model is loaded."""
    load: Callable[[], Awaitable[str]]
    """Loads the model off the event loop; returns the one line that says what was chosen. Of what it
    raises, LmError is told in a line, and anything else logged with its stack."""
    drain: Callable[[], Awaitable[None]] = _nothing
    """Stops threads and tasks; called once no call is in flight, and only if `load` had returned."""
    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    readiness: Readiness = field(default_factory=Readiness)
    """Turns calls away until `load` has returned; given by services that have a say of their own in it."""
    max_request_bytes: int = MAX_REQUEST_BYTES
    """Of one message to any of its methods; a larger one isn't even read."""


class PortTaken(Exception):
    """An address can't be listened on."""


class RunningServer:
    """A server that listens; its model may still be loading."""

    def __init__(self, service: Service, options: ServerOptions) -> None:
        self._service = service
        self._options = options
        self._readiness = service.readiness
        self._health = Health(service.full_names)
        self._server: aio.Server
        self._health_server: aio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._endpoint: MetricsEndpoint | None = None
        self._stopping: asyncio.Task[None] | None = None
        self.loaded: asyncio.Task[str]
        """Ends when the server is ready, with the line that says what was chosen, or with load's error."""
        self.address = ""
        self.metrics_address = ""
        self.health_address = ""

    @property
    def port(self) -> int:
        """The port it listens on."""
        return parse_address(self.address)[1]

    async def start(self) -> None:
        """Listens, says it is alive but not ready, and begins to load. Raises OptionError, PortTaken."""
        self._options.check()
        options, metrics = self._options, self._service.metrics
        guard = Guard(options.security, options.token, metrics, options.token_file)
        self._server = self._build(guard)
        self.address = _listen(self._options.address, partial(guard.add_port, self._server))
        self._start_metrics()
        await self._health.register(self._server)
        await self._start_health()
        await self._server.start()
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_caller_who_left)
        for watch in (self._service.metrics.watch_loop(), *guard.watches()):
            self._tasks.append(asyncio.create_task(watch))
        self.loaded = asyncio.create_task(self._load())

    async def wait_ready(self) -> str:
        """Returns load's line when calls are admitted; raises what load raised."""
        return await asyncio.shield(self.loaded)

    async def stop(self) -> None:
        """NOT_SERVING, admits nothing, finishes what is in flight, ends its own tasks; safe to call twice."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._drain())
        await asyncio.shield(self._stopping)

    async def _drain(self) -> None:
        was_loaded = self.loaded.done() and not self.loaded.cancelled() and not self.loaded.exception()
        self.loaded.cancel()
        self._readiness.close("the server is shutting down")
        self._service.metrics.ready.set(0)
        await self._health.set_ready(False)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._readiness.wait_idle(), self._options.grace_s)
        for server in (self._server, self._health_server):
            if server is not None:
                await server.stop(_FLUSH_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, self.loaded, return_exceptions=True)
        if was_loaded:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._service.drain(), _THREADS_S)
        if self._endpoint is not None:
            await asyncio.to_thread(self._endpoint.close)

    async def _load(self) -> str:
        line = await self._service.load()
        self._readiness.open()
        self._service.metrics.ready.set(1)
        await self._health.set_ready(True)
        return line

    def _build(self, guard: Guard) -> aio.Server:
        errors = Errors(self._options.log_texts)
        ours = [RequestIds(), Metrics(self._service.metrics), errors, *guard.interceptors()]
        intake = SilentStreams(self._options.silent_s), ReadableRequests(self._service.max_request_bytes)
        chain = Chain([*ours, self._readiness, *intake, *self._texts()], self._options.arrives_s)
        outer = [LetGo(), UnreadStreams(self._options.unread_s), *tracing.interceptors()]
        server = aio.server(interceptors=[*outer, chain], options=CHANNEL_OPTIONS)
        self._service.register(server)
        if self._options.reflection:
            names = (*self._service.full_names, HEALTH, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
            if guard.asks_who_calls or is_loopback(parse_address(self._options.address)[0]):
                add_channelz(server)
        return server

    def _texts(self) -> list[Texts]:
        if not self._options.log_texts:
            return []
        log.warning(ANNOUNCEMENT)
        return [Texts()]

    async def _start_health(self) -> None:
        if self._options.health_address is not None:
            outer = [LetGo(), UnreadStreams(self._options.unread_s)]
            options = dict(CHANNEL_OPTIONS) | {"grpc.max_receive_message_length": MAX_HEALTH_BYTES}
            self._health_server = aio.server(interceptors=outer, options=[*options.items()])
            self.health_address = _listen(self._options.health_address, self._health_server.add_insecure_port)
            await self._health.register(self._health_server)
            await self._health_server.start()

    def _start_metrics(self) -> None:
        if self._options.metrics_address is None:
            return
        host, port = parse_address(self._options.metrics_address, "--metrics-address")
        check_port(host, port)
        registry, security = self._service.metrics.registry, self._options.metrics_security
        self._endpoint = MetricsEndpoint(host, port, registry, security)
        self.metrics_address = join_address(host, self._endpoint.port)


def _listen(address: str, add_port: Callable[[str], int]) -> str:
    """The address with the port that was bound. Raises PortTaken."""
    host, port = parse_address(address)
    check_port(host, port)
    try:
        return join_address(host, add_port(join_address(host, port)))
    except RuntimeError as error:  # taken since the check
        raise PortTaken(f"can't listen on {address}: {error}") from None


def check_port(host: str, port: int) -> None:
    """Raises PortTaken with the system's reason; gRPC's own error is several lines of its internals."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        hint = "; another process listens there, choose another port" if taken else ""
        raise PortTaken(f"can't listen on {join_address(host, port)}: {error.strerror}{hint}") from None


@contextlib.asynccontextmanager
async def start_server(
    service: Service, options: ServerOptions | None = None
) -> AsyncIterator[RunningServer]:
    """A running server for tests and for use within a process; `wait_ready` tells when it is ready."""
    server = RunningServer(service, options or ServerOptions())
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def serve(service: Service, options: ServerOptions) -> int:
    """Serves until SIGTERM, SIGINT or the parent's end; returns the process's exit code."""
    asked = stop_request()
    server = RunningServer(service, options)
    try:
        await server.start()
    except OptionError as error:
        return _fail(service, str(error), EXIT_OPTIONS)
    except PortTaken as error:
        return _fail(service, str(error), EXIT_UNAVAILABLE)
    print(f"listening on {server.address}", flush=True)
    if server.metrics_address:
        print(f"metrics on {server.metrics_address}", flush=True)
    if server.health_address:
        print(f"health on {server.health_address}", flush=True)
    watching = asyncio.create_task(watch_parent(options.exit_with_parent, asked))
    await asyncio.wait({asked, server.loaded}, return_when=asyncio.FIRST_COMPLETED)
    code = _report_load(service, server.loaded) if server.loaded.done() else EXIT_DRAINED
    if code == EXIT_DRAINED:
        log.info("%s: draining after %s", service.name, await asked)
    await server.stop()
    watching.cancel()
    return code


def _report_load(service: Service, loaded: asyncio.Task[str]) -> int:
    error = loaded.exception()
    if error is None:
        # An import wants a pass more seldom: streams would leave 150 MiB to it. More often, every large call
        # would start one, and it goes through all that waits.
        gc.set_threshold(50_000, 3, 10)
        gc.freeze()  # what is loaded stays; to look through it for garbage would stop all calls for 0.3 s
        print(loaded.result(), flush=True)
        return EXIT_DRAINED
    if isinstance(error, InputError):
        return _fail(service, str(error), EXIT_OPTIONS)
    absent = absence(error, "serve")
    if absent is None and not isinstance(error, LmError):
        log.error("%s: unexpected error while loading", service.name, exc_info=error)
    return _fail(service, f"the model can't be loaded: {absent or error}", EXIT_FAILED)


def _fail(service: Service, message: str, code: int) -> int:
    print(f"{service.name}: {message}", file=sys.stderr, flush=True)
    return code
