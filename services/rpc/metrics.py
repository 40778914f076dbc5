"""Prometheus metrics of a server: names as in go-grpc-middleware, and ours in base units."""

import asyncio
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

import grpc
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

CALL_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
LAG_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30, 120, 600)
LAG_INTERVAL_S = 0.5
_METHOD = ("grpc_type", "grpc_service", "grpc_method")
_MODEL = ("model_id", "run_id", "weights_sha256", "tokenizer_sha256", "dtype")
REFUSALS = ("missing", "unknown", "expired", "keys", "scope", "failures", "requests", "tokens", "in_flight")
"""Why a call was refused: by its credential, without keys to check it by, by too many failures of its peer,
or by a quota."""
SECURITY_FILES = ("tokens", "tls", "jwks")

disable_created_metrics()  # a second series for each counter that nobody reads


def release() -> str:
    """Plaudit's version; "unknown" in a checkout that isn't installed."""
    try:
        return version("plaudit")
    except PackageNotFoundError:
        return "unknown"


def export_build_info(registry: CollectorRegistry) -> None:
    """Exports the versions of this process."""
    labels = ("version", "python", "grpc")
    info = Gauge("plaudit_build_info", "1, with versions as labels.", labels, registry=registry)
    info.labels(release(), platform.python_version(), grpc.__version__).set(1)


class ModelInfo:
    """Which weights: their digest among the labels of one series, their step as the value of another."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._model = Gauge("plaudit_model_info", "1, with the model as labels.", _MODEL, registry=registry)
        self._step = Gauge("plaudit_model_step", "Step of the model's weights.", registry=registry)

    def set(
        self,
        model_id: str,
        weights_sha256: str,
        tokenizer_sha256: str,
        dtype: str,
        *,
        run_id: str = "",
        step: int = 0,
    ) -> None:
        """Says which weights are meant from now on."""
        self._model.clear()
        self.add(model_id, weights_sha256, tokenizer_sha256, dtype, run_id=run_id)
        self._step.set(step)

    def add(
        self, model_id: str, weights_sha256: str, tokenizer_sha256: str, dtype: str, *, run_id: str = ""
    ) -> None:
        """Says that these weights are meant beside those named before."""
        self._model.labels(model_id, run_id, weights_sha256, tokenizer_sha256, dtype).set(1)


class Queue(Protocol):
    """Something that knows how much waits in it."""

    @property
    def waiting_items(self) -> int:
        """Items that wait or run."""
        ...

    @property
    def waiting_tokens(self) -> int:
        """Their tokens."""
        ...

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the messages that they came in."""
        ...


class SecurityMetrics:
    """Who is refused, and whether the files behind that are good; the gateway's, too."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.refused = Counter(
            "plaudit_calls_refused", "Calls refused by access or quota.", ("reason",), registry=registry
        )
        self.files = Gauge(
            "plaudit_security_file_good",
            "1 while the newest tokens file or certificate is in use, 0 where it can't be used.",
            ("file",),
            registry=registry,
        )
        for reason in REFUSALS:  # a series that is there from the start is seen to rise
            self.refused.labels(reason)
        for file in SECURITY_FILES:
            self.files.labels(file).set(1)


class ServerMetrics(SecurityMetrics):
    """The metrics of one server, in a registry of its own: several servers can share a process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        super().__init__(registry)
        ProcessCollector(registry=registry)
        self.started = Counter(
            "grpc_server_started", "Calls started on the server.", _METHOD, registry=registry
        )
        self.handled = Counter(
            "grpc_server_handled", "Calls ended, by status code.", (*_METHOD, "grpc_code"), registry=registry
        )
        self.seconds = Histogram(
            "grpc_server_handling_seconds",
            "Seconds from the start of a call to its end.",
            _METHOD,
            buckets=CALL_SECONDS,
            registry=registry,
        )
        self.received = Counter(
            "grpc_server_msg_received", "Request messages received.", _METHOD, registry=registry
        )
        self.sent = Counter("grpc_server_msg_sent", "Response messages sent.", _METHOD, registry=registry)
        self.ready = Gauge("plaudit_ready", "1 while calls are admitted, 0 otherwise.", registry=registry)
        self.lag = Histogram(
            "plaudit_event_loop_lag_seconds",
            "How much later than planned the event loop woke up, sampled twice a second.",
            buckets=LAG_SECONDS,
            registry=registry,
        )
        self.tasks = Gauge(
            "plaudit_event_loop_tasks",
            "Tasks of the event loop, sampled with its lag; those that outlive their call would add up.",
            registry=registry,
        )
        self.model = ModelInfo(registry)
        """The weights that serve."""
        export_build_info(registry)

    def gauge(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Exports what `read` returns at each scrape; `read` runs in the scraper's thread."""
        Gauge(name, documentation, registry=self.registry).set_function(read)

    def watch_queue(self, area: str, queue: Queue) -> None:
        """Exports how much waits in a service's queue."""
        self.gauge(f"plaudit_{area}_waiting_items", "Items waiting or running.", lambda: queue.waiting_items)
        self.gauge(f"plaudit_{area}_waiting_tokens", "Tokens of those items.", lambda: queue.waiting_tokens)
        self.gauge(
            f"plaudit_{area}_waiting_bytes",
            "Bytes of the messages that they came in.",
            lambda: queue.waiting_bytes,
        )

    async def watch_loop(self) -> None:
        """Samples the event loop's lag and its tasks until cancelled."""
        while True:
            due = time.monotonic() + LAG_INTERVAL_S
            await asyncio.sleep(LAG_INTERVAL_S)
            self.lag.observe(max(0.0, time.monotonic() - due))
            self.tasks.set(len(asyncio.all_tasks()))
