"""Spans of requests that are refused before a route is looked for; those that get so far have FastAPI's."""

from collections.abc import Mapping

from opentelemetry import propagate, trace

from services.gateway.metrics import METHODS


def trace_refusal(method: str, path: str, headers: Mapping[str, str], status: int, began_ns: int) -> None:
    """Adds one, named as FastAPI names what has no route; nothing in a process that isn't traced.

    `began_ns` is in nanoseconds since the epoch.
    """
    known = method if method in METHODS else "_OTHER"
    span = trace.get_tracer("services.gateway").start_span(
        "HTTP" if known == "_OTHER" else known,
        propagate.extract(headers),
        trace.SpanKind.SERVER,
        {"http.request.method": known, "http.response.status_code": status, "url.path": path},
        start_time=began_ns,
    )
    span.end()
