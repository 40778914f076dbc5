"""The reference service's own metrics."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter

from services.batch_metrics import BatchMetrics
from services.reference.items import Item


class ReferenceMetrics:
    """What was computed."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._sequences = Counter("plaudit_reference_sequences", "Sequences answered.", registry=registry)
        self._tokens = Counter(
            "plaudit_reference_tokens", "Tokens read, prompts included.", registry=registry
        )
        self.batches = BatchMetrics("reference", registry)

    def count(self, items: Sequence[Item]) -> None:
        """Counts the sequences of one call."""
        self._sequences.inc(len(items))
        self._tokens.inc(sum(len(item.ids) for item in items))
