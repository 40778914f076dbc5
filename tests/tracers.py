"""A tracer for tests: spans are kept in memory, and the process is untraced again afterwards."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

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


def spans_by_kind_and_name(memory, count):
    """Waits for so many spans."""
    end = time.monotonic() + 10
    while len(memory.get_finished_spans()) < count:
        assert time.monotonic() < end, memory.get_finished_spans()
        time.sleep(0.005)
    return {(each.kind, each.name): each for each in memory.get_finished_spans()}


def assert_chain(*spans):
    """Each is a part of the one before it; the first of whatever it says itself."""
    for outer, inner in pairwise(spans):
        assert inner.parent.span_id == outer.context.span_id
    assert len({each.context.trace_id for each in spans}) == 1


@contextmanager
def untraced_afterwards() -> Iterator[None]:
    """OpenTelemetry lets a process choose its tracer once; this takes the choice back."""
    try:
        yield
    finally:
        trace._TRACER_PROVIDER = None
        trace._TRACER_PROVIDER_SET_ONCE = Once()
