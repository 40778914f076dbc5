"""A call that is slow is made a second time: the first answer counts, the other call is cancelled."""

import asyncio
import threading
import time

import grpc
import pytest
from scripted_servers import SCORED, refuse

from plaudit import (
    AsyncRewardClient,
    InvalidArgument,
    PolicyClient,
    ReferenceClient,
    RewardClient,
    Unavailable,
)
from plaudit.clients.budget import MOST, SHARE

AFTER = 0.05
PAIR = [("the film", " is good")]
AWAY = refuse(grpc.StatusCode.UNAVAILABLE, "away", pushback_ms=-1)


class Slow:
    """A behaviour: the answer comes when somebody says so; knows who was cancelled meanwhile."""

    def __init__(self, answer=SCORED):
        self.answer, self.go, self.cancelled = answer, threading.Event(), threading.Event()

    def __call__(self, request, context):
        context.add_callback(self.cancelled.set)
        self.go.wait(10)
        return self.answer(request, context) if callable(self.answer) else self.answer


def ask_sync(addresses, times=1, **options):
    with RewardClient(addresses, timeout=10, **options) as client:
        return [client.score(PAIR)[0].reward for _ in range(times)]


def ask_async(addresses, times=1, **options):
    async def run():
        async with AsyncRewardClient(addresses, timeout=10, **options) as client:
            return [(await client.score(PAIR))[0].reward for _ in range(times)]

    return asyncio.run(run())


@pytest.fixture(params=[ask_sync, ask_async], ids=["sync", "async"])
def ask(request):
    """ask(addresses, times, …): the scores that one client got, one call after the other."""
    return request.param


@pytest.fixture
def slow():
    slow = Slow()
    yield slow
    slow.go.set()


def test_a_quick_answer_is_asked_for_once(serve_reward, ask):
    server = serve_reward(SCORED)
    assert ask(server.address, times=5, hedge_after=5) == [0.5] * 5
    assert len(server.heard) == 5


def test_another_address_answers_for_a_slow_one(serve_reward, ask, slow):
    first, second = serve_reward(slow), serve_reward(SCORED)
    assert ask([first.address, second.address], hedge_after=AFTER) == [0.5]
    assert slow.cancelled.wait(5)
    assert len(first.heard) == len(second.heard) == 1


def test_the_only_address_is_asked_over_a_second_connection(serve_reward, ask, slow):
    peers = []

    def answer(request, context):
        peers.append(context.peer())
        return SCORED

    def first(request, context):
        peers.append(context.peer())
        return slow(request, context)

    server = serve_reward(first, answer)
    assert ask(server.address, hedge_after=AFTER) == [0.5]
    assert slow.cancelled.wait(5)
    assert len(set(peers)) == 2


def test_the_first_may_still_win(serve_reward, ask, slow):
    second = Slow()

    def behave(request, context):
        slow.go.set()
        return second(request, context)

    servers = serve_reward(slow), serve_reward(behave)
    assert ask([server.address for server in servers], hedge_after=AFTER) == [0.5]
    assert second.cancelled.wait(5)
    second.go.set()


def test_a_second_that_fails_is_no_answer(serve_reward, ask, slow):
    def behave(request, context):
        threading.Timer(0.05, slow.go.set).start()
        AWAY(request, context)

    servers = serve_reward(slow), serve_reward(behave)
    assert ask([server.address for server in servers], hedge_after=AFTER) == [0.5]


def test_both_fail(serve_reward, ask):
    first = Slow(AWAY)

    def behave(request, context):
        first.go.set()
        AWAY(request, context)

    servers = serve_reward(first, AWAY), serve_reward(behave)
    with pytest.raises(Unavailable, match="away"):
        ask([server.address for server in servers], hedge_after=AFTER)


def test_a_failure_in_time_is_not_hedged(serve_reward, ask):
    servers = serve_reward(AWAY), serve_reward(SCORED)
    assert ask([server.address for server in servers], hedge_after=5) == [0.5]
    assert [len(server.heard) for server in servers] == [1, 1]


def test_a_service_that_is_slow_for_all_is_hardly_asked_for_more(serve_reward, ask):
    calls = 40

    def behave(request, context):
        time.sleep(0.01)
        return SCORED

    server = serve_reward(behave)
    assert ask(server.address, times=calls, hedge_after=0.001) == [0.5] * calls
    assert calls <= len(server.heard) <= calls + MOST + SHARE * calls


def test_without_being_asked_for_nothing_is_made_twice(serve_reward, ask):
    def behave(request, context):
        time.sleep(0.1)
        return SCORED

    server = serve_reward(behave)
    assert ask(server.address) == [0.5]
    assert len(server.heard) == 1


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_when_must_be_a_time(seconds):
    with pytest.raises(InvalidArgument, match="hedge_after"):
        ReferenceClient("127.0.0.1:1", hedge_after=seconds)


def test_a_policy_is_not_asked_twice():
    with pytest.raises(InvalidArgument, match="hedge_after: is for reward and reference, not for policy"):
        PolicyClient("127.0.0.1:1", hedge_after=1)
