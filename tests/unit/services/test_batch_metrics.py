"""What a batcher does is exported, with labels and without."""

from prometheus_client import CollectorRegistry

from services.batch_metrics import BatchMetrics
from services.batching import Batcher, Caller
from services.room import Room


async def doubled(items, deadline):
    return [2 * item for item in items]


def batcher():
    return Batcher(doubled, token_budget=100, room=Room(100, 1000, 1000))


async def test_a_batch_is_observed():
    registry, watched = CollectorRegistry(), batcher()
    BatchMetrics("reference", registry).watch(watched)
    await watched.submit([1, 2, 3], [8, 9, 10])
    sample = registry.get_sample_value
    assert sample("plaudit_reference_queue_wait_seconds_count") == 3
    assert sample("plaudit_reference_batch_items_sum") == 3
    assert sample("plaudit_reference_batch_seconds_count") == 1
    assert 0 < sample("plaudit_reference_batch_seconds_sum") < 60
    assert sample("plaudit_reference_computed_tokens_total") == 27
    assert sample("plaudit_reference_padded_tokens_total") == 30


async def test_each_batcher_has_its_own_series_from_the_start():
    registry, one, other = CollectorRegistry(), batcher(), batcher()
    metrics = BatchMetrics("reward", registry, ("model",))
    metrics.watch(one, "one")
    metrics.watch(other, "other")
    (future,) = one.put([1], [4], Caller(), keys=[1])
    assert (await future).value == 2

    def tokens(model):
        return registry.get_sample_value("plaudit_reward_computed_tokens_total", {"model": model})

    assert (tokens("one"), tokens("other")) == (4, 0)
