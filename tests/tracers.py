"""A tracer for tests: spans are kept in memory, and the process is untraced again afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util._once import Once

from services.rpc.tracing import tracing_by


@contextmanager
def spans_in_memory() -> Iterator[InMemorySpanExporter]:
    """Traces this process in the block."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with untraced_afterwards(), tracing_by(provider):
        yield exporter


@contextmanager
def untraced_afterwards() -> Iterator[None]:
    """OpenTelemetry lets a process choose its tracer once; this takes the choice back."""
    try:
        yield
    finally:
        trace._TRACER_PROVIDER = None
        trace._TRACER_PROVIDER_SET_ONCE = Once()
