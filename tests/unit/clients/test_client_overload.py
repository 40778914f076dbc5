"""Full services, over the wire: asked again until the deadline, by so many calls at once and no more."""

import asyncio
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from scripted_servers import REWARD, SCORED, refuse

import plaudit
from plaudit import (
    AsyncRewardClient,
    DeadlineExceeded,
    InvalidArgument,
    Overloaded,
    RewardClient,
    Unavailable,
)

Code = grpc.StatusCode
PAIR = [("the film", " is good")]


def full(milliseconds=20):
    """As our services say it: when to come back, in both places."""
    delay = Duration()
    delay.FromMilliseconds(milliseconds)
    retry = error_details_pb2.RetryInfo(retry_delay=delay)
    return refuse(Code.RESOURCE_EXHAUSTED, "full", retry, pushback_ms=milliseconds)


# ---- again until the deadline ----


def test_a_full_service_is_asked_more_often_than_grpc_would(serve_reward, score):
    server = serve_reward(*[full(1)] * 8, SCORED)
    assert score(server.address)[0].reward == 0.5
    assert len(server.heard) == 9
    assert len({heard.metadata["x-request-id"] for heard in server.heard}) == 1


def test_never_before_it_wants_to_be(serve_reward, score):
    times = []

    def full_then_scored(request, context):
        times.append(time.monotonic())
        if len(times) < 4:
            full(150)(request, context)
        return SCORED

    score(serve_reward(full_then_scored).address)
    assert all(later - earlier >= 0.15 for earlier, later in itertools.pairwise(times))


def test_the_deadline_ends_it(serve_reward, score):
    server = serve_reward(full(30))
    with pytest.raises(Overloaded) as caught:
        score(server.address, timeout=1)
    assert caught.value.retry_after == 0.03
    assert len(server.heard) > 1


def test_the_deadline_ends_it_during_a_try(serve_reward, score):
    def hang(request, context):
        server.hang(request, context)

    server = serve_reward(full(100), full(300), hang)
    with pytest.raises(
        Overloaded, match=r"full; asked again, no answer in the 0\.\d s that were left"
    ) as caught:
        score(server.address, timeout=1)
    assert caught.value.retry_after == 0.3
    assert len(server.heard) == 3


def test_no_wait_for_what_the_deadline_forbids(serve_reward, score):
    server = serve_reward(full(60_000))
    with pytest.raises(Overloaded):
        score(server.address, timeout=30)
    assert len(server.heard) == 1


@pytest.mark.parametrize("method", ["rank", "compare", "list_models"])
def test_all_that_may_be_sent_twice(serve, call, method):
    rpc = {"rank": "Rank", "compare": "Compare", "list_models": "ListModels"}[method]
    arguments = {"rank": ("p", ["a", "b"]), "compare": ("p", "a", "b"), "list_models": ()}[method]
    response = REWARD.methods_by_name[rpc].output_type._concrete_class()
    server = serve(REWARD, {rpc: [full(1), full(1), response]})
    call("reward", server.address, method, *arguments)
    assert len(server.heard) == 3


def test_a_full_queue_is_no_outage(serve_reward):
    """It doesn't use up the budget of retries that an outage has."""
    server = serve_reward(*[full(1)] * 150, refuse(Code.UNAVAILABLE, "draining", pushback_ms=1))
    with RewardClient(server.address) as client, ThreadPoolExecutor(16) as pool:

        def ask(_):
            with pytest.raises(Unavailable):
                client.score(PAIR, timeout=60)

        list(pool.map(ask, range(16)))
    assert len(server.heard) >= 150 + 16 + 30, "of the first calls after it, each was tried again"


def test_another_address_does_it_at_once(serve_reward, score):
    servers = [serve_reward(full(60_000)), serve_reward(SCORED)]
    for _ in range(2):
        assert score([server.address for server in servers], timeout=30)[0].reward == 0.5


def test_all_are_full_for_a_while(serve_reward, score):
    servers = [serve_reward(full(1), full(1), SCORED), serve_reward(*[full(1)] * 20)]
    assert score([server.address for server in servers])[0].reward == 0.5


def test_one_is_full_and_the_other_is_gone(serve_reward, score, unused_address):
    server = serve_reward(full(1), full(1), SCORED)
    assert score([server.address, unused_address])[0].reward == 0.5
    server = serve_reward(full(1), full(1), SCORED)
    assert score([unused_address, server.address])[0].reward == 0.5


# ---- leaving while a call waits to be made again ----


def test_closing_ends_the_wait(serve_reward):
    server = serve_reward(full(50_000))
    client = RewardClient(server.address)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(client.score, PAIR, timeout=100)
        wait_until(lambda: server.heard)
        client.close()
        with pytest.raises(plaudit.PlauditError):
            pending.result(timeout=30)
    assert len(server.heard) == 1


async def test_closing_ends_the_wait_of_a_task(serve_reward):
    server = serve_reward(full(50_000))
    client = AsyncRewardClient(server.address)
    pending = asyncio.create_task(client.score(PAIR, timeout=100))
    await asyncio.to_thread(wait_until, lambda: server.heard)
    await asyncio.sleep(0.1)
    await client.close()
    with pytest.raises((plaudit.PlauditError, asyncio.CancelledError)):
        async with asyncio.timeout(30):
            await pending
    assert len(server.heard) == 1


async def test_a_task_that_is_cancelled_waits_no_more_and_gives_its_turn_back(serve_reward):
    server = serve_reward(full(50_000), SCORED)
    async with AsyncRewardClient(server.address, max_in_flight=1) as client:
        pending = asyncio.create_task(client.score(PAIR, timeout=100))
        await asyncio.to_thread(wait_until, lambda: server.heard)
        pending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pending
        assert (await client.score(PAIR))[0].reward == 0.5


def wait_until(holds):
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


# ---- how many at once ----


class Crowd:
    """A behaviour that counts how many calls are there together."""

    def __init__(self):
        self._lock = threading.Lock()
        self._now = 0
        self.most = 0

    def __call__(self, request, context):
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.01)
        with self._lock:
            self._now -= 1
        return SCORED


def test_so_many_threads_call_at_once(serve_reward):
    crowd = Crowd()
    server = serve_reward(crowd)
    with RewardClient(server.address, max_in_flight=3) as client, ThreadPoolExecutor(8) as pool:
        scores = list(pool.map(lambda _: client.score(PAIR)[0].reward, range(40)))
    assert scores == [0.5] * 40
    assert crowd.most <= 3


async def test_so_many_tasks_call_at_once(serve_reward):
    crowd = Crowd()
    server = serve_reward(crowd)
    async with AsyncRewardClient(server.address, max_in_flight=3) as client:
        scores = await asyncio.gather(*(client.score(PAIR) for _ in range(40)))
    assert [score[0].reward for score in scores] == [0.5] * 40
    assert crowd.most <= 3


async def test_a_thousand_calls_at_once(serve_reward):
    server = serve_reward(*[full(1)] * 100, SCORED)
    async with AsyncRewardClient(server.address) as client:
        scores = await asyncio.gather(*(client.score(PAIR) for _ in range(1000)))
    assert len(scores) == 1000
    assert len(server.heard) == 1100


def test_the_wait_for_a_turn_has_an_end(serve_reward, score):
    server = serve_reward(lambda request, context: server.hang(request, context))
    with RewardClient(server.address, max_in_flight=1) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.score, PAIR, timeout=100)
        assert server.busy.wait(30)
        with pytest.raises(DeadlineExceeded, match="max_in_flight=1"):
            client.score(PAIR, timeout=0.2)
        server.over.set()
        with pytest.raises(plaudit.PlauditError):
            first.result(timeout=30)
    assert len(server.heard) == 1


async def test_the_wait_of_a_task_for_a_turn_has_an_end(serve_reward):
    server = serve_reward(lambda request, context: server.hang(request, context))
    async with AsyncRewardClient(server.address, max_in_flight=1) as client:
        first = asyncio.create_task(client.score(PAIR, timeout=100))
        assert await asyncio.to_thread(server.busy.wait, 30)
        with pytest.raises(DeadlineExceeded, match="max_in_flight=1"):
            await client.score(PAIR, timeout=0.2)
        first.cancel()
    assert len(server.heard) == 1


def test_a_call_that_fails_gives_its_turn_back(serve_reward):
    server = serve_reward(*[refuse(Code.INVALID_ARGUMENT, "no")] * 5, SCORED)
    with RewardClient(server.address, max_in_flight=1) as client:
        for _ in range(5):
            with pytest.raises(InvalidArgument):
                client.score(PAIR)
        assert client.score(PAIR)[0].reward == 0.5


@pytest.mark.parametrize("count", [0, -1])
def test_some_calls_must_be_allowed(count):
    with pytest.raises(InvalidArgument, match="max_in_flight"):
        RewardClient("host:1", max_in_flight=count)


# ---- whose calls they are ----


def test_the_caller_says_its_name(serve_reward, score):
    server = serve_reward(SCORED)
    score(server.address, client={"caller": "team a/ranker"})
    score(server.address)
    named, unnamed = server.heard
    assert named.metadata["x-plaudit-caller"] == "team a/ranker"
    assert "x-plaudit-caller" not in unnamed.metadata


@pytest.mark.parametrize("caller", ["", " a", "a ", "é", "a\nb", "x" * 129])
def test_names_that_cannot_be(caller):
    with pytest.raises(InvalidArgument, match="caller"):
        RewardClient("host:1", caller=caller)
