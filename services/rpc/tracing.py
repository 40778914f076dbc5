"""Traces by OpenTelemetry, where its own environment variables ask for them; off by default.

    OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318   sends spans to a collector
    OTEL_TRACES_EXPORTER=console                        or to another exporter that is installed

Whatever else OpenTelemetry's SDK reads from the environment holds, too. A process is the service
`plaudit-NAME` unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES call it otherwise.
"""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import grpc
from grpc import aio
from opentelemetry import trace

from services.rpc.metrics import release
from services.rpc.scopes import STANDARD

if TYPE_CHECKING:  # imported only where traces are asked for
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

EXPORTER = "OTEL_TRACES_EXPORTER"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
DISABLED = "OTEL_SDK_DISABLED"
FLUSH_S = 5.0
"""How long the last spans have to leave a process that ends."""

log = logging.getLogger("services.rpc.tracing")


@contextmanager
def traced(name: str, environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Traces this process in the block if `environ` asks for it, and says in a log line what comes of it."""
    asked_by = _asked_by(environ)
    if asked_by is None:
        yield
        return
    try:
        provider = _provider(name, _exporter_name(environ))
    except Exception as error:  # nothing about traces is worth a service that doesn't start
        log.warning("%s is set, but nothing is traced: %s", asked_by, error)
        yield
        return
    log.info("traces go to %s, by %s", environ[asked_by], asked_by)
    with tracing_by(provider):
        yield


@contextmanager
def tracing_by(provider: "TracerProvider") -> Iterator[None]:
    """Has `provider` trace the calls that this process makes, and those to servers built in the block."""
    from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient

    trace.set_tracer_provider(provider)
    clients, awaited = GrpcInstrumentorClient(filter_=_calls()), GrpcAioInstrumentorClient(filter_=_calls())
    clients.instrument()
    awaited.instrument()
    for name in ("insecure_channel", "secure_channel"):
        setattr(aio, name, partial(getattr(aio, name), interceptors=[_Cancelling()]))
    try:
        yield
    finally:
        awaited.uninstrument()
        clients.uninstrument()
        last = threading.Thread(target=provider.shutdown, name="last-spans", daemon=True)
        last.start()
        last.join(FLUSH_S)  # a collector that is away may not hold up the end


def is_traced() -> bool:
    """Whether this process is."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def interceptors() -> list[aio.ServerInterceptor]:
    """What traces the calls to a server; nothing in a process that isn't traced."""
    if not is_traced():
        return []
    from opentelemetry.instrumentation.grpc import aio_server_interceptor

    return [aio_server_interceptor(filter_=_calls())]


def note(**values: float) -> None:
    """Says more about the call that is served, in its span."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attributes({f"plaudit.{name}": value for name, value in values.items()})


def _calls() -> Callable[[grpc.HandlerCallDetails], bool]:
    """All calls but those that only tell about a server."""
    from opentelemetry.instrumentation.grpc import filters

    return filters.negate(filters.any_of(*(filters.service_prefix(prefix) for prefix in STANDARD)))


class _Cancelling(aio.UnaryUnaryClientInterceptor):
    """Ends call and span where who awaits them is cancelled: the instrumentation leaves both as they are."""

    async def intercept_unary_unary(
        self,
        continuation: "Callable[..., Awaitable[aio.UnaryUnaryCall[Any, Any]]]",
        client_call_details: aio.ClientCallDetails,
        request: object,
    ) -> "aio.UnaryUnaryCall[Any, Any]":
        call, span = await continuation(client_call_details, request), trace.get_current_span()

        def end(task: "asyncio.Task[Any]") -> None:
            if task.cancelled():
                call.cancel()
                span.set_status(trace.StatusCode.ERROR, "cancelled by the caller")
                span.end()

        if task := asyncio.current_task():
            task.add_done_callback(end)
        return call


def _asked_by(environ: Mapping[str, str]) -> str | None:
    """The variable that asks for traces, if any does."""
    if environ.get(EXPORTER) == "none" or environ.get(DISABLED, "").lower() == "true":
        return None
    return next((key for key in (*ENDPOINTS, EXPORTER) if environ.get(key)), None)


def _exporter_name(environ: Mapping[str, str]) -> str:
    """As exporters call themselves among the entry points."""
    name = environ.get(EXPORTER) or "otlp"
    protocol = next((environ[key] for key in PROTOCOLS if environ.get(key)), "")
    return {"otlp": "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"}.get(name, name)


def _provider(name: str, exporter: str) -> "TracerProvider":
    """Raises ImportError where a package is missing, and what the exporter raises."""
    entries = entry_points(group="opentelemetry_traces_exporter", name=exporter)
    if not entries or find_spec("opentelemetry.instrumentation.grpc") is None:
        raise ImportError(f"packages for {exporter} are missing; in the checkout: pip install --group traces")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=_resource(name), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(entries[exporter].load()()))
    return provider


def _resource(name: str) -> "Resource":
    """What every span of this process says of it; the environment has the last word."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    own = Resource.create(
        {
            "service.name": f"plaudit-{name}",
            "service.version": release(),
            "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        }
    )
    return own.merge(OTELResourceDetector().detect())
