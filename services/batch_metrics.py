"""What batchers do, as Prometheus metrics: the same of every service that has one."""

from collections.abc import Sequence
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram

from services.batching import Batcher, Ran

MetricT = TypeVar("MetricT", Counter, Histogram)

WAIT_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 120, 300)
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
COMPUTE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class BatchMetrics:
    """The metrics of a service's batchers; with `labels`, each has series of its own."""

    def __init__(self, area: str, registry: CollectorRegistry, labels: Sequence[str] = ()) -> None:
        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"plaudit_{area}_{name}", text, labels, buckets=buckets, registry=registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"plaudit_{area}_{name}", text, labels, registry=registry)

        self._wait = histogram(
            "queue_wait_seconds", "Seconds that an item waited for its batch.", WAIT_SECONDS
        )
        self._items = histogram("batch_items", "Items of a batch.", ITEMS)
        self._seconds = histogram("batch_seconds", "Seconds of computing a batch.", COMPUTE_SECONDS)
        self._computed = counter("computed_tokens", "Tokens of the items that were computed.")
        self._padded = counter("padded_tokens", "The same tokens and the padding of their batches.")

    def watch(self, batcher: Batcher[Any, Any], *values: str) -> None:
        """Observes every batch from now on, under the labels' `values`."""
        wait, items, seconds = (_child(each, values) for each in (self._wait, self._items, self._seconds))
        computed, padded = (_child(each, values) for each in (self._computed, self._padded))

        def observe(ran: Ran) -> None:
            for waited in ran.queue_seconds:
                wait.observe(waited)
            items.observe(len(ran.queue_seconds))
            seconds.observe(ran.compute_seconds)
            computed.inc(ran.tokens)
            padded.inc(ran.padded_tokens)

        batcher.on_batch = observe


def _child(metric: MetricT, values: Sequence[str]) -> MetricT:
    return metric.labels(*values) if values else metric
