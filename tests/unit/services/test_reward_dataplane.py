"""What a call pays for, the tokens that are computed for it; what its items take while they wait."""

import asyncio
import gc
import tracemalloc
from dataclasses import replace

import pytest
from gateway_server import Held

from services.batching import WAITING_CALLS, CallLimits
from services.errors import Overloaded, QuotaExceeded
from services.reward.config import ModelSpec
from services.reward.dataplane import PlainModel
from services.reward.interface import Options, score
from services.reward.items import Encoded, Ids, Pair

MOST = 8
ONE = [Ids([5] * MOST)]
"""As many tokens as a call may have."""


@pytest.fixture
async def held(tiny_reward):
    """(engine, model) whose queue holds a few calls, and computes when it is let."""
    engine = Held(tiny_reward)
    model = PlainModel(ModelSpec("reward", str(tiny_reward)), lambda: engine, CallLimits(max_tokens=MOST))
    await model.load()
    yield engine, model
    engine.go_on.set()
    await model.close()


def begun(model, charge):
    return model.begin(ONE, ["items[0]"], Options(charge=charge))


async def test_who_is_turned_away_is_not_charged(held):
    engine, model = held
    paid = []
    pending = [one for _ in range(WAITING_CALLS) for one in await begun(model, paid.append)]
    with pytest.raises(Overloaded, match=f"{WAITING_CALLS * MOST} tokens wait already"):
        for _ in range(2):  # the spare part may hold one more
            await begun(model, paid.append)
    assert set(paid) == {MOST}
    assert model.waiting_tokens == sum(paid)
    engine.go_on.set()
    await asyncio.wait_for(asyncio.gather(*(one.future for one in pending)), 60)


async def test_what_cannot_be_paid_for_is_not_computed(held):
    engine, model = held

    def refuse(tokens):
        raise QuotaExceeded(f"{tokens} tokens are too many", 1.0)

    with pytest.raises(QuotaExceeded, match="8 tokens"):
        await begun(model, refuse)
    await asyncio.sleep(0)
    assert (model.waiting_items, model.waiting_tokens) == (0, 0)
    engine.go_on.set()
    (one,) = await begun(model, lambda tokens: None)
    await asyncio.wait_for(one.future, 60)


async def test_what_waits_is_small(tiny_reward):
    """Thousands may: their ids of four bytes each, 800 bytes for the rest, and no copy of a text."""
    engine = Held(tiny_reward)
    model = PlainModel(ModelSpec("reward", str(tiny_reward)), lambda: engine, CallLimits())
    await model.load()
    count, response = 2048, " is" * 60

    async def call():
        return await score(
            model,
            [Pair("the film", f"{response}{number}") for number in range(count)],
            [f"items[{index}]" for index in range(count)],
            Options(),
        )

    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        task = asyncio.create_task(call())
        assert await asyncio.to_thread(engine.begun.wait, 60)
        assert model.waiting_items == count
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        ids = 4 * model.waiting_tokens / count
        assert ids > 200
        assert (after - before) / count < ids + 800
    finally:
        tracemalloc.stop()
        engine.go_on.set()
    assert len((await asyncio.wait_for(task, 60)).outcomes) == count
    await model.close()


async def test_of_several_errors_the_first_is_raised_and_none_is_complained_about(held):
    engine, model = held
    engine.fails, engine.token_budget = True, 1
    unheard = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unheard.append(context))
    scoring = asyncio.create_task(score(model, [Ids([5]), Ids([6])], ["items[0]", "items[1]"], Options()))
    await asyncio.to_thread(engine.begun.wait, 60)
    engine.go_on.set()
    with pytest.raises(RuntimeError, match="out of memory"):
        await asyncio.wait_for(scoring, 60)
    del scoring
    gc.collect()
    await asyncio.sleep(0)
    assert (unheard, model.waiting_items) == ([], 0)


def test_a_key_tells_ids_from_types():
    assert Encoded.of([1, 2]).key == replace(Encoded.of([1, 2]), truncated_tokens=3).key
    keys = {
        Encoded.of([1, 2]).key,
        Encoded.of([1, 2, 0, 1]).key,
        Encoded.of([1, 2], [0, 1]).key,
        Encoded.of([1, 2], [0, 0]).key,
    }
    assert len(keys) == 4
