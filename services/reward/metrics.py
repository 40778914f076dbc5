"""The reward service's own metrics."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.reward.dataplane import PlainModel
from services.reward.interface import Outcome
from services.reward.items import Score


class RewardMetrics:
    """What was scored."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._items = Counter(
            "plaudit_reward_items", "Items answered, scored or error.", ("result",), registry=registry
        )
        self._tokens = Counter(
            "plaudit_reward_tokens", "Tokens of the items that were scored.", registry=registry
        )
        self._waiting_items = Gauge(
            "plaudit_reward_waiting_items", "Items waiting or running.", ("model",), registry=registry
        )
        self._waiting_tokens = Gauge(
            "plaudit_reward_waiting_tokens", "Tokens of those items.", ("model",), registry=registry
        )

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Counts the outcomes of one call."""
        scores = [outcome for outcome in outcomes if isinstance(outcome, Score)]
        self._items.labels("scored").inc(len(scores))
        self._items.labels("error").inc(len(outcomes) - len(scores))
        self._tokens.inc(sum(score.token_count for score in scores))

    def watch(self, network: PlainModel) -> None:
        """Exports how much waits in a network's queue."""
        batcher = network.batcher
        self._waiting_items.labels(network.name).set_function(lambda: batcher.waiting_items)
        self._waiting_tokens.labels(network.name).set_function(lambda: batcher.waiting_tokens)
