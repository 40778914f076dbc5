"""What a call pays for: the tokens that are computed for it, and nothing that is turned away."""

import asyncio

import pytest
from gateway_server import Held

from services.batching import WAITING_CALLS, CallLimits
from services.errors import Overloaded, QuotaExceeded
from services.reward.config import ModelSpec
from services.reward.dataplane import PlainModel
from services.reward.interface import Options
from services.reward.items import Ids

MOST = 8
ONE = [Ids([5] * MOST)]
"""As many tokens as a call may have."""


@pytest.fixture
async def held(tiny_reward):
    """(engine, model) whose queue holds four calls, and computes when it is let."""
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
    with pytest.raises(Overloaded, match="32 tokens wait already"):
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
