"""Many callers at once against the real service whose queue is full for a while: nobody is lost."""

import asyncio
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from reward_server import options

from plaudit import AsyncRewardClient, Overloaded, Reward, RewardClient
from services.batching import WAITING_CALLS, CallLimits
from services.reward.engine import RewardEngine
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.server import start_server

QUEUE = CallLimits(max_items=8)
FULL = WAITING_CALLS * QUEUE.max_items
"""Items that wait at most, but for the spare part."""


class Held:
    """A reward engine that scores only while it is let."""

    def __init__(self, engine):
        self._engine = engine
        self.facts = engine.facts
        self.token_budget = 1024
        self.go = threading.Event()

    def encode(self, *arguments, **named):
        return self._engine.encode(*arguments, **named)

    def score(self, batch):
        assert self.go.wait(60)
        return self._engine.score(batch)


@pytest.fixture
def held(tiny_reward):
    return Held(RewardEngine(str(tiny_reward), "cpu", "float32", 1))


@pytest.fixture
def crowded(held, tiny_reward):
    """(address, refused()) of a service with that engine and a short queue."""
    made = []

    def make():
        made.append(reward_service(options(tiny_reward), QUEUE, lambda _: held))
        return made[0]

    with serve_in_background(make) as server:
        yield server.address, lambda: ended(made[0], "ResourceExhausted")
        held.go.set()


def ended(service, code, method="Score"):
    """How many calls have ended so."""
    (handled,) = service.metrics.handled.collect()
    wanted = {"grpc_code": code, "grpc_method": method}
    return sum(one.value for one in handled.samples if wanted.items() <= one.labels.items())


def is_full(address):
    with RewardClient(address) as client:
        return client.get_model().queue.items == FULL


def eventually(holds):
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def pairs(start, count):
    return [("the film", f" is good {number}") for number in range(start, start + count)]


async def test_all_of_a_crowd_is_served_once_there_is_room(crowded, held):
    address, refused = crowded
    async with AsyncRewardClient(address, max_in_flight=1000) as client:
        calls = [asyncio.create_task(client.score([pair], timeout=110)) for pair in pairs(0, 300)]
        await asyncio.to_thread(eventually, lambda: refused() >= 300)
        held.go.set()
        scores = await asyncio.gather(*calls)
        assert all(isinstance(score[0], Reward) for score in scores)
        assert (await client.get_model()).queue.items == 0


def test_threads_with_a_client_each(crowded, held):
    address, refused = crowded

    def ask(number):
        with RewardClient(address) as client:
            return client.score(pairs(number, 1), timeout=110)[0]

    with ThreadPoolExecutor(60) as pool:
        calls = [pool.submit(ask, number) for number in range(60)]
        eventually(lambda: refused() >= 40)
        held.go.set()
        assert all(isinstance(call.result(110), Reward) for call in calls)


async def test_without_room_the_call_says_so_in_time(crowded, held):
    address, _ = crowded
    async with AsyncRewardClient(address) as client:
        calls = (client.score(pairs(8 * n, 8), timeout=100) for n in range(WAITING_CALLS))
        filling = [asyncio.create_task(call) for call in calls]
        await asyncio.to_thread(eventually, lambda: is_full(address))
        with pytest.raises(Overloaded) as caught:
            await client.score(pairs(99, 1), timeout=3)
        assert caught.value.retry_after > 0
        held.go.set()
        await asyncio.gather(*filling)


async def test_a_client_asks_no_more_at_once_than_it_may(crowded, held):
    """With as many calls as the queue holds, a crowd is never turned away."""
    address, refused = crowded
    held.go.set()
    async with AsyncRewardClient(address, max_in_flight=FULL) as client:
        scores = await asyncio.gather(*(client.score([pair], timeout=110) for pair in pairs(0, 500)))
    assert len(scores) == 500
    assert refused() == 0


async def test_a_crowd_leaves_nothing_behind(crowded, held):
    address, _ = crowded
    held.go.set()
    process = psutil.Process()
    async with AsyncRewardClient(address) as client:

        async def crowd():
            await asyncio.gather(*(client.score([pair], timeout=110) for pair in pairs(0, 200)))
            gc.collect()
            return process.memory_info().rss

        await crowd()
        first = await crowd()
        last = [await crowd() for _ in range(3)][-1]
        assert (await client.get_model()).queue.items == 0
    assert last - first < 20e6


async def test_streams_end_well(tiny_reward):
    """Not by being cancelled, which the service's metrics would show as trouble."""
    service = reward_service(options(tiny_reward))
    async with start_server(service) as server:
        await server.wait_ready()
        async with AsyncRewardClient(server.address) as client:
            assert len([result async for result in client.score_many(pairs(0, 100))]) == 100

        def blocking():
            with RewardClient(server.address) as client:
                return len(list(client.score_many(pairs(0, 100))))

        assert await asyncio.to_thread(blocking) == 100
        await asyncio.to_thread(eventually, lambda: ended(service, "OK", "ScoreStream") == 2)
