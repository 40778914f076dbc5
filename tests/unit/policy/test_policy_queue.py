import pytest
from policy_bench import asked

from services.batching import WAITING_CALLS, CallLimits
from services.errors import Overloaded
from services.policy.interface import Generation
from services.policy.queue import RequestQueue


def queue_of(*requests, limits=None):
    queue = RequestQueue(limits or CallLimits())
    generations = [Generation(request) for request in requests]
    for generation in generations:
        queue.admit(generation)
    return queue, generations


def taken(queue, rows=64):
    return [waiting.generation for waiting in queue.take(rows)]


def test_counts_responses_and_tokens_until_they_are_released():
    queue, (first, second) = queue_of(asked((1, 2), samples_per_prompt=3), asked((1,), (2,)))
    assert (queue.waiting_items, queue.waiting_tokens) == (3 + 2, 3 * 10 + 2 * 9)
    taken(queue)
    assert len(queue) == 0
    assert queue.waiting_items == 5  # they run now
    queue.release(first)
    assert (queue.waiting_items, queue.waiting_tokens) == (2, 18)
    queue.release(second)
    assert (queue.waiting_items, queue.waiting_tokens) == (0, 0)


def test_what_nobody_waits_for_any_more_says_nothing_of_how_fast_it_goes():
    queue, (first, second) = queue_of(asked((1,)), asked((2,)))
    queue.release(first, answered=False)
    assert queue.room._drain._items == 0
    queue.release(second)
    assert queue.room._drain._items == 1


def test_a_released_request_does_not_wait_any_more():
    queue, (first, second) = queue_of(asked((1,)), asked((2,)))
    queue.release(first)
    assert queue.generations == [second]


def test_turns_away_when_there_are_too_many_responses():
    limits = CallLimits(max_items=2, max_tokens=10_000)
    queue, _ = queue_of(*[asked((1,), (2,))] * WAITING_CALLS, limits=limits)
    with pytest.raises(Overloaded, match=f"{2 * WAITING_CALLS} items"):
        queue.admit(Generation(asked((1,))))
    assert queue.waiting_items == 2 * WAITING_CALLS


def test_turns_away_when_there_are_too_many_tokens():
    limits = CallLimits(max_items=1000, max_tokens=100)
    queue, _ = queue_of(asked((1,), max_new_tokens=100 * WAITING_CALLS - 10), limits=limits)
    with pytest.raises(Overloaded):
        queue.admit(Generation(asked((1,), max_new_tokens=9)))
    queue.admit(Generation(asked((1,), max_new_tokens=8)))


def test_those_that_draw_alike_come_together_oldest_first():
    queue, (a, b, c, d) = queue_of(
        asked((1,)), asked((2,), temperature=0.5), asked((3,), max_new_tokens=3), asked((4,), temperature=0.5)
    )
    assert taken(queue) == [a, c]
    assert taken(queue) == [b, d]


@pytest.mark.parametrize("how", [{"top_k": 5}, {"top_p": 0.9}, {"temperature": 0.0}])
def test_every_sampling_setting_counts(how):
    queue, (a, _) = queue_of(asked((1,)), asked((2,), **how))
    assert taken(queue) == [a]


def test_a_deterministic_request_comes_alone():
    alone = {"deterministic": True}
    queue, (a, b, c, d) = queue_of(asked((1,)), asked((2,), **alone), asked((3,)), asked((4,), **alone))
    assert taken(queue) == [a, c]
    assert taken(queue) == [b]
    assert taken(queue) == [d]


def test_a_batch_is_not_overfilled_but_a_large_request_comes_anyway():
    queue, (a, b, c, d) = queue_of(
        asked((1,), samples_per_prompt=3), asked((2,), samples_per_prompt=2), asked((3,)), asked(*[(4,)] * 9)
    )
    assert taken(queue, rows=4) == [a, c]
    assert taken(queue, rows=4) == [b]
    assert taken(queue, rows=4) == [d]
