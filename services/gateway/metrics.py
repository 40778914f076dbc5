"""Prometheus metrics of the gateway: names and labels as in OpenTelemetry's conventions for HTTP servers."""

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from services.rpc.metrics import SecurityMetrics, export_build_info

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
BODY_BYTES = tuple(1 << power for power in range(8, 25, 2))
METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS"})

disable_created_metrics()  # a second series for each counter that nobody reads


class HttpMetrics(SecurityMetrics):
    """The metrics of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        super().__init__(registry)
        ProcessCollector(registry=registry)
        self._seconds = Histogram(
            "http_server_request_duration_seconds",
            "Seconds from the head of a request to the end of its response.",
            ("http_request_method", "http_route", "http_response_status_code"),
            buckets=SECONDS,
            registry=registry,
        )
        self._bytes = Histogram(
            "http_server_request_body_size_bytes",
            "Bytes of request bodies.",
            ("http_route",),
            buckets=BODY_BYTES,
            registry=registry,
        )
        export_build_info(registry)
        self.active = Gauge("http_server_active_requests", "Requests being answered.", registry=registry)

    def ended(self, method: str, route: str, status: int, seconds: float, body_bytes: int) -> None:
        """Counts a request. `route` is a template such as "/v1/score", never a path that a caller made up."""
        method = method if method in METHODS else "_OTHER"
        self._seconds.labels(method, route, str(status)).observe(seconds)
        self._bytes.labels(route).observe(body_bytes)
