"""The batcher: plans are partitions under the budget, results come back in order, admission is exact."""

import asyncio
import time

import pytest
from hypothesis import given, strategies as st

from services.batching import Batcher, plan_batches
from services.errors import Overloaded, TooLate

LENGTHS = st.lists(st.integers(1, 50), max_size=40)


async def doubled(items, deadline):
    return [2 * item for item in items]


def batcher(run=doubled, **changes):
    return Batcher(run, **{"token_budget": 16, "max_items": 100, "max_tokens": 1000, **changes})


@given(LENGTHS, st.integers(1, 100))
def test_a_plan_holds_every_item_once(lengths, budget):
    plan = plan_batches(lengths, budget)
    assert sorted(index for batch in plan for index in batch) == list(range(len(lengths)))
    assert all(plan)


@given(LENGTHS, st.integers(1, 100))
def test_a_batch_keeps_the_budget_or_is_one_item(lengths, budget):
    for batch in plan_batches(lengths, budget):
        padded = max(lengths[index] for index in batch) * len(batch)
        assert padded <= budget or len(batch) == 1


@given(LENGTHS, st.integers(1, 100))
def test_batches_are_neighbours_by_length(lengths, budget):
    flat = [lengths[index] for batch in plan_batches(lengths, budget) for index in batch]
    assert flat == sorted(lengths, reverse=True)


@given(LENGTHS, st.integers(1, 100))
def test_no_batch_could_take_the_next_item(lengths, budget):
    plan = plan_batches(lengths, budget)
    for batch in plan[:-1]:
        assert lengths[batch[0]] * (len(batch) + 1) > budget


def test_a_plan_by_hand():
    # Sorted: 9 | 5 5 5 (15 of 16) | 4 4 2 1 (16 of 16) | 1
    assert plan_batches([5, 1, 9, 4, 5, 4, 2, 5, 1], 16) == [[2], [0, 4, 7], [3, 5, 6, 1], [8]]


def test_an_item_above_the_budget_is_a_batch_of_its_own():
    assert plan_batches([100, 3, 3], 10) == [[0], [1, 2]]


@given(LENGTHS)
def test_results_come_in_the_callers_order(lengths):
    items = list(range(len(lengths)))
    results = asyncio.run(batcher().submit(items, lengths))
    assert results == [2 * item for item in items]


@given(st.lists(LENGTHS, min_size=1, max_size=4))
def test_callers_take_turns_and_do_not_mix(callers):
    async def echo(items, deadline):
        assert len({caller for caller, _ in items}) == 1
        await asyncio.sleep(0)
        return items

    async def submit_all():
        shared = batcher(echo, max_tokens=10_000, max_items=1000)
        calls = [[(n, index) for index in range(len(lengths))] for n, lengths in enumerate(callers)]
        submits = (shared.submit(items, lengths) for items, lengths in zip(calls, callers, strict=True))
        return calls, await asyncio.gather(*submits), shared

    calls, answers, shared = asyncio.run(submit_all())
    assert answers == calls
    assert (shared.waiting_items, shared.waiting_tokens) == (0, 0)


async def test_a_small_call_is_not_behind_all_of_a_large_one():
    order = []

    async def note(items, deadline):
        order.append(items[0][0])
        await asyncio.sleep(0)
        return items

    shared = batcher(note)
    large = shared.submit([("large", n) for n in range(4)], [16] * 4)
    small = shared.submit([("small", 0)], [16])
    await asyncio.gather(large, small)
    assert order == ["large", "small", "large", "large", "large"]


class Blocked:
    """A run_batch that holds every batch until it is opened."""

    def __init__(self):
        self.opened = asyncio.Event()
        self.began = []

    async def __call__(self, items, deadline):
        self.began.extend(items)
        await self.opened.wait()
        return items


async def test_a_cancelled_caller_starts_nothing_more_and_frees_its_places():
    run = Blocked()
    shared = batcher(run, token_budget=4)
    call = asyncio.create_task(shared.submit(["a", "b", "c"], [4, 4, 4]))
    await asyncio.sleep(0)
    assert (shared.waiting_items, shared.waiting_tokens) == (3, 12)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert run.began == ["a"]
    assert (shared.waiting_items, shared.waiting_tokens) == (0, 0)


@pytest.mark.parametrize("full", [{"max_items": 3}, {"max_tokens": 12}])
async def test_admission_is_bounded_by_items_and_by_tokens(full):
    run = Blocked()
    shared = batcher(run, **full)
    first = asyncio.create_task(shared.submit([1, 2, 3], [4, 4, 4]))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="3 items of 12 tokens wait already") as caught:
        await shared.submit([4], [1])
    assert caught.value.retry_after > 0
    run.opened.set()
    assert await first == [1, 2, 3]
    assert await shared.submit([4], [1]) == [4]


async def test_a_failed_batch_fails_its_caller_and_frees_its_places():
    async def fail(items, deadline):
        raise RuntimeError("no memory")

    shared = batcher(fail, token_budget=4)
    with pytest.raises(RuntimeError, match="no memory"):
        await shared.submit([1, 2], [4, 4])
    assert (shared.waiting_items, shared.waiting_tokens) == (0, 0)


async def test_a_run_that_loses_a_result_is_found():
    async def lossy(items, deadline):
        return items[1:]

    with pytest.raises(ValueError, match="zip"):
        await batcher(lossy).submit([1, 2], [1, 1])


async def test_nothing_begins_after_the_deadline():
    run = Blocked()
    with pytest.raises(TooLate):
        await batcher(run).submit([1], [1], time.monotonic())
    assert run.began == []


async def test_the_deadline_reaches_the_run():
    seen = []

    async def note(items, deadline):
        seen.append(deadline)
        return items

    deadline = time.monotonic() + 60
    await batcher(note).submit([1], [1], deadline)
    await batcher(note).submit([1], [1])
    assert seen == [deadline, None]


async def test_no_items_no_batch():
    assert await batcher(Blocked()).submit([], []) == []
