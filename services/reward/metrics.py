"""The reward service's own metrics."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter

from services.reward.dataplane import Outcome
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

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Counts the outcomes of one call."""
        scores = [outcome for outcome in outcomes if isinstance(outcome, Score)]
        self._items.labels("scored").inc(len(scores))
        self._items.labels("error").inc(len(outcomes) - len(scores))
        self._tokens.inc(sum(score.token_count for score in scores))
