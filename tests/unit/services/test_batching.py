"""The batcher: results come back in order, admission is exact, callers share fairly, nothing is lost."""

import asyncio
import gc
import time

import pytest
from hypothesis import given, settings, strategies as st

from services.batching import Batcher, Caller
from services.errors import Overloaded, TooLate
from services.room import Room
from services.turns import Entry

LENGTHS = st.lists(st.integers(1, 50), max_size=40)


async def doubled(items, deadline):
    return [2 * item for item in items]


def batcher(run=doubled, token_budget=16, max_items=100, max_tokens=1000, max_bytes=1000, **options):
    room = Room(max_items, max_tokens, max_bytes)
    return Batcher(run, token_budget=token_budget, room=room, **options)


class Blocked:
    """A run_batch that notes what it is given, and holds every batch until it is opened."""

    def __init__(self):
        self.opened = asyncio.Event()
        self.batches = []

    async def __call__(self, items, deadline):
        self.batches.append(list(items))
        await self.opened.wait()
        return items


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def values(futures):
    return [future.result().value for future in futures]


# --- a call alone ---


@given(LENGTHS)
def test_results_come_in_the_callers_order(lengths):
    items = list(range(len(lengths)))
    results = asyncio.run(batcher(max_tokens=2000).submit(items, lengths))
    assert results == [2 * item for item in items]


@given(st.lists(LENGTHS, min_size=1, max_size=4))
def test_submitted_calls_do_not_mix(callers):
    async def echo(items, deadline):
        assert len({caller for caller, _ in items}) == 1
        await asyncio.sleep(0)
        return items

    async def submit_all():
        shared = batcher(echo, max_tokens=10_000, max_items=1000)
        calls = [[(n, index) for index in range(len(lengths))] for n, lengths in enumerate(callers)]
        submits = (
            shared.submit(items, lengths, Caller(str(n % 2)))
            for n, (items, lengths) in enumerate(zip(calls, callers, strict=True))
        )
        answers = await asyncio.gather(*submits)
        await settle()
        return calls, answers, shared

    calls, answers, shared = asyncio.run(submit_all())
    assert answers == calls
    assert (shared.waiting_items, shared.waiting_tokens) == (0, 0)


async def test_the_same_call_alone_or_beside_others_is_cut_the_same_way():
    run = Blocked()
    shared = batcher(run)
    shared.put(list("xyz"), [7, 3, 9], Caller("other"), keys=list("xyz"))
    call = asyncio.create_task(shared.submit(list("abcd"), [4, 8, 4, 4]))
    run.opened.set()
    assert await call == list("abcd")
    assert [batch for batch in run.batches if batch[0] in "abcd"] == [["b", "a"], ["c", "d"]]


async def test_no_items_no_batch():
    run = Blocked()
    assert await batcher(run).submit([], []) == []
    assert run.batches == []


async def test_a_failed_batch_fails_its_caller_and_frees_its_places():
    async def fail(items, deadline):
        raise RuntimeError("no memory")

    shared = batcher(fail, token_budget=4)
    with pytest.raises(RuntimeError, match="no memory"):
        await shared.submit([1, 2], [4, 4])
    await settle()
    assert (shared.waiting_items, shared.waiting_tokens) == (0, 0)


async def test_a_run_that_loses_a_result_is_found():
    async def lossy(items, deadline):
        return items[1:]

    with pytest.raises(ValueError, match="zip"):
        await batcher(lossy).submit([1, 2], [1, 1])


# --- admission, cancelling, deadlines ---


@pytest.mark.parametrize("full", [{"max_items": 3}, {"max_tokens": 12}])
async def test_admission_is_bounded_by_items_and_by_tokens(full):
    run = Blocked()
    shared = batcher(run, **full)
    first = asyncio.create_task(shared.submit([1, 2, 3], [4, 4, 4]))
    await settle()
    with pytest.raises(Overloaded, match="3 items of 12 tokens wait already") as caught:
        await shared.submit([4], [2])
    assert caught.value.retry_after > 0
    run.opened.set()
    assert await first == [1, 2, 3]
    await settle()
    assert await shared.submit([4], [1]) == [4]


async def test_room_is_waited_for():
    run = Blocked()
    shared = batcher(run, max_items=2)
    shared.put([1, 2], [1, 1], Caller(), keys=[1, 2])
    waiting = asyncio.create_task(shared.room.wait(1, 0))
    await settle()
    assert not waiting.done()
    run.opened.set()
    await asyncio.wait_for(waiting, 5)


async def test_room_is_kept_for_what_is_made_ready():
    """Before any work, so that what waits to be tokenised is bounded, too."""
    run = Blocked()
    shared = batcher(run, max_items=3)
    with shared.room.reserve(2, 0):
        with pytest.raises(Overloaded, match="2 items of 0 tokens wait already"), shared.room.reserve(2, 0):
            pytest.fail("there is no room")
        with pytest.raises(Overloaded):
            shared.put([1, 2], [1, 1], Caller(), keys=[1, 2])
        waiting = asyncio.create_task(shared.room.wait(2, 0))
        await settle()
        assert not waiting.done()
        shared.put([3], [1], Caller(), keys=[3])
    with pytest.raises(Overloaded), shared.room.reserve(3, 0):
        pytest.fail("there is no room")
    await asyncio.wait_for(waiting, 5)
    run.opened.set()


@pytest.mark.parametrize("keys", [range(500), None], ids=["shared", "alone"])
async def test_what_waits_is_little_for_garbage_collection_to_go_through(keys):
    """Of an item: its future and callback, its entry and who waits for it."""
    waits = batcher(Blocked(), max_items=1000, max_tokens=10_000)
    gc.collect()
    before = len(gc.get_objects())
    futures = waits.put(range(500), [7] * 500, Caller("a"), keys)
    gc.collect()
    assert len(gc.get_objects()) - before < 6 * len(futures)
    for future in futures:
        future.cancel()


async def test_a_cancelled_caller_starts_nothing_more_and_frees_its_places():
    run = Blocked()
    shared = batcher(run, token_budget=4)
    call = asyncio.create_task(shared.submit(["a", "b", "c"], [4, 4, 4]))
    await settle()
    assert (shared.waiting_items, shared.waiting_tokens) == (3, 12)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await settle()
    assert (shared.waiting_items, shared.waiting_tokens) == (0, 0)
    run.opened.set()
    assert await shared.submit(["d"], [1]) == ["d"]
    assert run.batches == [["a"], ["d"]]


async def test_nothing_begins_after_the_deadline():
    run = Blocked()
    with pytest.raises(TooLate):
        await batcher(run).submit([1], [1], Caller(deadline=time.monotonic()))
    assert run.batches == []


async def test_an_item_that_expired_is_computed_for_who_asks_next():
    run = Blocked()
    run.opened.set()
    shared = batcher(run)
    (late,) = shared.put(["a"], [1], Caller(deadline=time.monotonic()), keys=["a"])
    with pytest.raises(TooLate):
        await late
    (again,) = shared.put(["a"], [1], Caller(), keys=["a"])
    assert (await again).value == "a"


async def test_the_latest_deadline_of_a_batch_reaches_the_run():
    seen = []

    async def note(items, deadline):
        seen.append(deadline)
        return items

    soon, late = time.monotonic() + 60, time.monotonic() + 90
    shared = batcher(note)
    await shared.submit([1], [1], Caller(deadline=soon))
    await shared.submit([1], [1])
    one = shared.put([1], [1], Caller("a", deadline=soon), keys=["1"])
    two = shared.put([2], [1], Caller("b", deadline=late), keys=["2"])
    await asyncio.gather(*one, *two)
    one = shared.put([3], [1], Caller("a", deadline=soon), keys=["3"])
    two = shared.put([4], [1], Caller("b"), keys=["4"])
    await asyncio.gather(*one, *two)
    assert seen == [soon, None, late, None]


# --- sharing ---


async def test_callers_items_of_like_length_share_a_batch():
    run = Blocked()
    shared = batcher(run, token_budget=40)
    first = shared.put(["long", "a1"], [40, 10], Caller("a"), keys=["long", "a1"])
    second = shared.put(["b1", "b2"], [9, 10], Caller("b"), keys=["b1", "b2"])
    await settle()
    run.opened.set()
    await asyncio.gather(*first, *second)
    assert run.batches[0] == ["long"]
    assert sorted(run.batches[1]) == ["a1", "b1", "b2"]


async def test_the_same_content_in_flight_is_computed_once():
    run = Blocked()
    shared = batcher(run, token_budget=4)
    first = shared.put(["a", "b"], [4, 4], Caller("one"), keys=["a", "b"])
    await settle()
    second = shared.put(["a", "b"], [4, 4], Caller("two"), keys=["a", "b"])
    assert shared.waiting_items == 4
    run.opened.set()
    await asyncio.gather(*first, *second)
    assert values(first) == values(second) == ["a", "b"]
    assert run.batches == [["a"], ["b"]]
    await settle()
    assert shared.waiting_items == 0


async def test_a_cancelled_twin_leaves_the_other():
    run = Blocked()
    shared = batcher(run, token_budget=4)
    shared.put(["x"], [4], Caller("x"), keys=["x"])
    (first,) = shared.put(["a"], [4], Caller("one"), keys=["a"])
    (second,) = shared.put(["a"], [4], Caller("two"), keys=["a"])
    await settle()
    first.cancel()
    run.opened.set()
    assert (await second).value == "a"
    assert run.batches == [["x"], ["a"]]


async def test_all_twins_cancelled_nothing_runs():
    run = Blocked()
    shared = batcher(run, token_budget=4)
    (running,) = shared.put(["x"], [4], Caller("x"), keys=["x"])
    twins = [
        *shared.put(["a"], [4], Caller("one"), keys=["a"]),
        *shared.put(["a"], [4], Caller(), keys=["a"]),
    ]
    await settle()
    for twin in twins:
        twin.cancel()
    await settle()
    run.opened.set()
    await running
    await settle()
    assert run.batches == [["x"]]
    assert shared.waiting_items == 0


async def test_who_comes_as_the_last_twin_leaves_is_answered():
    run = Blocked()
    shared = batcher(run, token_budget=4)
    shared.put(["x"], [4], Caller("x"), keys=["x"])
    (first,) = shared.put(["a"], [4], Caller("one"), keys=["a"])
    await settle()
    came = []
    # In the loop's next turn "a" comes up, somebody sends it, and the batcher hears that it was left.
    run.opened.set()
    asyncio.get_running_loop().call_soon(
        lambda: came.extend(shared.put(["a"], [4], Caller("two"), keys=["a"]))
    )
    first.cancel()
    await settle()
    (second,) = came
    assert (await asyncio.wait_for(second, 10)).value == "a"


@pytest.mark.parametrize("leave", [False, True], ids=["answered", "cancelled"])
async def test_a_crowd_of_twins_is_looked_through_a_few_times_and_not_once_for_each(leave, monkeypatch):
    looked_at, found_in = [], Entry.futures.fget
    monkeypatch.setattr(
        Entry, "futures", property(lambda entry: looked_at.extend(found_in(entry)) or found_in(entry))
    )
    shared, count = batcher(max_items=400), 400
    twins = shared.put(["a"] * count, [1] * count, Caller("one"), keys=["a"] * count)
    if leave:
        for twin in twins:
            twin.cancel()
    await asyncio.wait(twins)
    await settle()
    assert shared.waiting_items == 0
    assert count <= len(looked_at) <= 5 * count


async def test_a_twin_may_wait_longer_than_the_first():
    run = Blocked()
    shared = batcher(run, token_budget=4)
    shared.put(["x"], [4], Caller("x"), keys=["x"])
    first = shared.put(["a"], [4], Caller("one", deadline=time.monotonic()), keys=["a"])
    second = shared.put(["a"], [4], Caller("two"), keys=["a"])
    run.opened.set()
    await asyncio.gather(*first, *second)
    assert values(second) == ["a"]


async def test_what_is_kept_is_not_computed_again_and_the_least_used_goes_first():
    run = Blocked()
    run.opened.set()
    shared = batcher(run, cache_items=2)

    async def ask(item):
        (future,) = shared.put([item], [1], Caller(), keys=[item])
        return (await future).value

    for item in ("a", "b", "a", "c", "a", "b"):  # c pushes b out, since a was used after it
        assert await ask(item) == item
    assert run.batches == [["a"], ["b"], ["c"], ["b"]]


async def test_nothing_is_kept_unless_asked_for():
    run = Blocked()
    run.opened.set()
    shared = batcher(run)
    for _ in range(2):
        await asyncio.gather(*shared.put(["a"], [1], Caller(), keys=["a"]))
        await settle()
    assert run.batches == [["a"], ["a"]]


async def test_a_failed_batch_fails_all_who_wait_for_it_and_only_them():
    broken = True

    async def run(items, deadline):
        if broken:
            raise RuntimeError("no memory")
        return items

    shared = batcher(run)
    futures = [
        *shared.put(["a"], [1], Caller("one"), keys=["a"]),
        *shared.put(["a"], [1], Caller(), keys=["a"]),
    ]
    for future in futures:
        with pytest.raises(RuntimeError, match="no memory"):
            await future
    broken = False
    (again,) = shared.put(["a"], [1], Caller(), keys=["a"])
    assert (await again).value == "a"


async def test_who_listens_hears_of_every_batch_and_its_padding():
    ran = []
    shared = batcher(token_budget=100)
    shared.on_batch = ran.append
    await asyncio.gather(*shared.put([1, 2, 3], [8, 9, 10], Caller(), keys=[1, 2, 3]))
    await shared.submit([4], [5])
    assert [(each.tokens, each.padded_tokens, len(each.queue_seconds)) for each in ran] == [
        (27, 30, 3),
        (5, 5, 1),
    ]
    assert all(each.compute_seconds > 0 and min(each.queue_seconds) > 0 for each in ran)


async def test_a_batch_that_failed_was_one_too():
    async def broken(items, deadline):
        raise RuntimeError("no memory")

    ran = []
    shared = batcher(broken)
    shared.on_batch = ran.append
    with pytest.raises(RuntimeError):
        await shared.submit([1], [3])
    await settle()
    assert [each.tokens for each in ran] == [3]


async def test_who_listens_hears_what_the_cache_spared():
    hits = []
    shared = batcher(cache_items=1)
    shared.on_cache_hit = lambda: hits.append(1)
    for items in ("a", "aa", "b", "a"):
        await asyncio.gather(*shared.put(items, [1] * len(items), Caller(), keys=items))
    assert len(hits) == 2


async def test_the_time_in_the_queue_and_in_the_model_is_told():
    async def slow(items, deadline):
        await asyncio.sleep(0.01)
        return items

    shared = batcher(slow, token_budget=4)
    first, second = shared.put(["a", "b"], [4, 4], Caller(), keys=["a", "b"])
    one, two = await first, await second
    assert one.compute_seconds > 0.009 < two.compute_seconds  # a loop may wake a little early
    assert two.queue_seconds >= one.queue_seconds + one.compute_seconds * 0.99


# --- fairness ---


async def served(shared, run, *calls):
    """Names of the callers in the order in which their batches ran."""
    for caller, count in calls:
        items = [(caller.name, number) for number in range(count)]
        shared.put(items, [16] * count, caller, keys=[(caller.name, number) for number in range(count)])
    await settle()
    run.opened.set()
    await shared.room.wait(100, 0)
    return [batch[0][0] for batch in run.batches]


async def test_a_single_item_is_not_behind_all_of_a_bulk_caller():
    run = Blocked()
    order = await served(batcher(run), run, (Caller("bulk"), 6), (Caller("single"), 1))
    assert order == ["bulk", "single", *["bulk"] * 5]


async def test_beside_a_bulk_caller_a_light_one_waits_for_a_small_batch():
    run = Blocked()
    shared = batcher(run, token_budget=64, max_tokens=10_000)
    bulk = [f"bulk {number}" for number in range(60)]
    shared.put(bulk, [8] * 60, Caller("bulk"), keys=bulk)
    await settle()
    shared.put(["light"], [8], Caller("light"), keys=["light"])
    run.opened.set()
    await shared.room.wait(100, 0)
    sizes = [len(batch) for batch in run.batches]
    assert "light" in run.batches[1]
    assert sizes[:3] == [8, 2, 8]


async def test_a_crowd_of_light_callers_fills_its_batches():
    run = Blocked()
    shared = batcher(run, token_budget=64, max_tokens=10_000)
    for number in range(24):
        shared.put([number], [8], Caller(str(number)), keys=[number])
    run.opened.set()
    await shared.room.wait(100, 0)
    assert [len(batch) for batch in run.batches] == [8, 8, 8]


async def test_callers_take_turns():
    run = Blocked()
    order = await served(batcher(run), run, (Caller("a"), 3), (Caller("b"), 3))
    assert order == ["a", "b", "a", "b", "a", "b"]


async def test_a_higher_weight_has_a_larger_share_and_shuts_nobody_out():
    run = Blocked()
    order = await served(batcher(run), run, (Caller("low", 0.25), 4), (Caller("high", 1.0), 8))
    assert order[:10].count("high") == 8
    assert "low" in order[:2]


async def test_who_comes_back_has_no_credit():
    run = Blocked()
    run.opened.set()
    shared = batcher(run)
    await asyncio.gather(*shared.put([("idle", 0)], [16], Caller("idle"), keys=["i0"]))
    await asyncio.gather(
        *(f for n in range(9) for f in shared.put([("busy", n)], [16], Caller("busy"), keys=[f"b{n}"]))
    )
    run.batches.clear()
    run.opened.clear()
    order = await served(shared, run, (Caller("busy"), 4), (Caller("idle"), 4))
    assert order == ["busy", "idle"] * 4


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.integers(0, 9), st.integers(1, 30), st.booleans(), st.booleans()
        ),
        max_size=40,
    )
)
def test_every_item_is_answered_once_whatever_is_cancelled(script):
    """Callers, contents, lengths; whether in a batch of its own; whether cancelled."""

    async def run():
        shared = batcher(max_items=1000, max_tokens=100_000)
        kept, cancelled = [], []
        for caller, item, _, alone, cancel in script:
            length = 3 * item + 1
            (future,) = shared.put([item], [length], Caller(caller), None if alone else [item])
            (cancelled if cancel else kept).append((item, future))
            await asyncio.sleep(0)
            if cancel:
                future.cancel()
        assert [(await future).value for _, future in kept] == [2 * item for item, _ in kept]
        await settle()
        assert (shared.waiting_items, shared.waiting_tokens) == (0, 0)

    asyncio.run(asyncio.wait_for(run(), 10))
