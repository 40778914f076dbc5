"""The reward service's own metrics."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.batch_metrics import BatchMetrics
from services.reward.dataplane import PlainModel
from services.reward.interface import Outcome
from services.reward.items import Score, ScoreNotFinite

RESULTS = ("scored", "error", "not_finite")


class RewardMetrics:
    """What was scored."""

    def __init__(self, registry: CollectorRegistry) -> None:
        items = Counter(
            "plaudit_reward_items",
            "Items answered: scored, error (the item's own), or not_finite (the model gave no number).",
            ("result",),
            registry=registry,
        )
        # From 0 on, so that the first one is a rise, too.
        self._scored, self._errors, self._not_finite = (items.labels(result) for result in RESULTS)
        self._tokens = Counter(
            "plaudit_reward_tokens", "Tokens of the items that were scored.", registry=registry
        )
        self._waiting_items = Gauge(
            "plaudit_reward_waiting_items", "Items waiting or running.", ("model",), registry=registry
        )
        self._waiting_tokens = Gauge(
            "plaudit_reward_waiting_tokens", "Tokens of those items.", ("model",), registry=registry
        )
        self._waiting_bytes = Gauge(
            "plaudit_reward_waiting_bytes",
            "Bytes of the messages that they came in.",
            ("model",),
            registry=registry,
        )
        self._cache_hits = Counter(
            "plaudit_reward_cache_hits",
            "Items that were not computed, since their score had been kept.",
            ("model",),
            registry=registry,
        )
        self._batches = BatchMetrics("reward", registry, ("model",))

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Counts the outcomes of one call."""
        scores = [outcome for outcome in outcomes if isinstance(outcome, Score)]
        not_finite = sum(isinstance(outcome, ScoreNotFinite) for outcome in outcomes)
        self._scored.inc(len(scores))
        self._not_finite.inc(not_finite)
        self._errors.inc(len(outcomes) - len(scores) - not_finite)
        self._tokens.inc(sum(score.token_count for score in scores))

    def watch(self, network: PlainModel) -> None:
        """Exports what waits in a network's queue, and what becomes of it."""
        batcher = network.batcher
        self._waiting_items.labels(network.name).set_function(lambda: batcher.waiting_items)
        self._waiting_tokens.labels(network.name).set_function(lambda: batcher.waiting_tokens)
        self._waiting_bytes.labels(network.name).set_function(lambda: batcher.waiting_bytes)
        self._batches.watch(batcher, network.name)
        batcher.on_cache_hit = self._cache_hits.labels(network.name).inc
