"""A client that was closed says so, whatever it is asked, and makes no connection any more."""

import asyncio

import pytest
from scripted_servers import SCORED

from plaudit import (
    AsyncRewardClient,
    AsyncTrainerClient,
    FailedPrecondition,
    RewardClient,
    TrainerClient,
)

PAIRS = [("The film was", " a joy.")]
CLOSED = "the {} client is closed; make another one"


@pytest.mark.parametrize("called_before", [True, False])
def test_it_says_so(serve_reward, called_before):
    server = serve_reward(SCORED)
    with RewardClient(server.address) as client:
        if called_before:
            client.score(PAIRS)
    with pytest.raises(FailedPrecondition, match=CLOSED.format("reward")):
        client.score(PAIRS)
    with pytest.raises(FailedPrecondition, match=CLOSED.format("reward")):
        next(client.score_many(PAIRS))
    assert len(server.heard) == called_before


@pytest.mark.parametrize("called_before", [True, False])
async def test_so_does_an_async_one(serve_reward, called_before):
    server = serve_reward(SCORED)
    async with AsyncRewardClient(server.address) as client:
        if called_before:
            await client.score(PAIRS)
    with pytest.raises(FailedPrecondition, match=CLOSED.format("reward")):
        await client.score(PAIRS)
    with pytest.raises(FailedPrecondition, match=CLOSED.format("reward")):
        await anext(client.score_many(PAIRS))
    assert len(server.heard) == called_before


def test_so_do_streams_of_the_server():
    client = TrainerClient("127.0.0.1:1")
    client.close()
    with pytest.raises(FailedPrecondition, match=CLOSED.format("trainer")):
        next(client.watch_run())


async def test_and_awaited_ones():
    client = AsyncTrainerClient("127.0.0.1:1")
    await client.close()
    with pytest.raises(FailedPrecondition, match=CLOSED.format("trainer")):
        await anext(client.watch_run())


def test_closing_twice_is_once(serve_reward):
    client = RewardClient(serve_reward(SCORED).address)
    client.score(PAIRS)
    client.close()
    client.close()


async def test_also_when_awaited(serve_reward):
    client = AsyncRewardClient(serve_reward(SCORED).address)
    await asyncio.gather(*(client.score(PAIRS) for _ in range(3)))
    await client.close()
    await client.close()
