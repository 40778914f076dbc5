"""Callers of the gateway: what counts as answered, rejected and failed; and ways that a crowd takes."""

import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from free_ports import free_address
from gateway_server import gateway_in_background, held_reward, options, wait_until

from plaudit import DeadlineExceeded, FailedPrecondition, Overloaded, RewardClient, Unavailable
from services.batching import WAITING_CALLS, CallLimits
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from soak.load import ITEMS
from soak.over_http import HttpCaller, as_json, error_of, http_callers, value
from soak.overload import seconds_of
from soak.processes import is_ready
from soak.ways import OverGrpc, OverHttp

MOST = 128
SCORE = "/v1/score"
BODY = {"items": as_json(ITEMS)}
FULL = {"code": "RESOURCE_EXHAUSTED", "detail": "full"}


@pytest.fixture(scope="module")
def reward(tiny_reward):
    with serve_in_background(lambda: reward_service(options(tiny_reward))) as server:
        yield server.address


@pytest.fixture(scope="module")
def gateway(reward):
    with gateway_in_background(reward) as gateway:
        yield gateway.address


@pytest.fixture
def full(tiny_reward):
    """(address of a gateway behind which the queue is full, what lets it go on)."""
    with (
        held_reward(tiny_reward, CallLimits(max_items=MOST)) as reward,
        gateway_in_background(reward.address) as gateway,
        HttpCaller(gateway.address, 60) as caller,
        ThreadPoolExecutor(WAITING_CALLS) as pool,
    ):
        calls = [pool.submit(caller.ask, SCORE, many(number)) for number in range(WAITING_CALLS)]
        wait_until(lambda: reward.waiting == WAITING_CALLS * MOST)
        yield gateway.address, reward.engine.go_on
        reward.engine.go_on.set()
        assert all(call.result()["results"] for call in calls)


def many(call):
    return {"items": as_json([("the film", f" {call} {number}") for number in range(MOST)])}


def test_every_kind_of_request_ends_as_it_should_and_is_counted(reward, gateway):
    with RewardClient(reward) as client, contextlib.ExitStack() as stack:
        expected = [result.reward for result in client.score(ITEMS, deterministic=True)]
        kinds = http_callers(gateway, stack, expected)
        for kind in kinds:
            kind.call()
    outcome = {kind.name: dict(kind.tally.counts) for kind in kinds}
    assert [kind.tally.wrong for kind in kinds] == [[]] * 4
    *good, bad = outcome.values()
    assert good == [{"sent": 1, "answered": 1}] * 3
    assert bad == {"sent": 1, "rejected": 1}


def test_an_answer_that_differs_is_wrong(gateway):
    with contextlib.ExitStack() as stack:
        score, *_ = http_callers(gateway, stack, expected=[0.0] * len(ITEMS))
        score.call()
    assert len(score.tally.wrong) == 1


def test_a_gateway_without_its_service_and_none_at_all(gateway):
    with gateway_in_background(free_address()) as alone, HttpCaller(alone.address, 30) as caller:
        with pytest.raises(Unavailable, match="can't be reached"):
            caller.ask(SCORE, BODY)
        with pytest.raises(Unavailable, match="not ready"):
            caller.probe()
        assert not is_ready(caller.http)
    with HttpCaller(free_address(), 30) as caller:
        with pytest.raises(Unavailable, match="ConnectError"):
            caller.ask(SCORE, BODY)
        assert seconds_of(caller.probe) == float("inf")
        assert not is_ready(caller.http)
    with HttpCaller(gateway, 30) as caller:
        caller.probe()
        assert is_ready(caller.http)


def test_one_that_never_answers():
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        HttpCaller("{}:{}".format(*silent.getsockname()), 0.05) as caller,
        pytest.raises(DeadlineExceeded, match="Timeout"),
    ):
        caller.ask(SCORE, BODY)


class Noting(HttpCaller):
    """Knows when it has been refused."""

    def __init__(self, *how):
        super().__init__(*how)
        self.refused = threading.Event()

    def ask(self, *what):
        try:
            return super().ask(*what)
        except Overloaded:
            self.refused.set()
            raise


def test_who_is_turned_away_comes_back_and_is_let_in(full):
    address, go_on = full
    with Noting(address, 60) as caller, ThreadPoolExecutor(1) as pool:
        call = pool.submit(caller.ask_until_let_in, SCORE, many("another"))
        assert caller.refused.wait(30)
        go_on.set()
        assert len(call.result()["results"]) == MOST


class Answering(HttpCaller):
    """Of a service that ends each call in turn with one of these."""

    def __init__(self, *errors):
        super().__init__(free_address(), 60)
        self._errors = list(errors)

    def ask(self, *_):
        raise self._errors.pop(0)


def refusal(seconds):
    return error_of({**FULL, "retry_after_seconds": seconds})


@pytest.mark.parametrize(
    ("errors", "end"),
    [
        ([refusal(61)], Overloaded),  # it would come back too late
        ([refusal(0.01), DeadlineExceeded("at last")], Overloaded),  # as the gRPC clients say it
        ([DeadlineExceeded("at once")], DeadlineExceeded),
        ([refusal(0.01), Unavailable("away")], Unavailable),
    ],
)
def test_who_is_not_let_in_in_time_was_refused(errors, end):
    with Answering(*errors) as caller, pytest.raises(end):
        caller.ask_until_let_in(SCORE, BODY)


@pytest.mark.parametrize("way", [OverGrpc, OverHttp])
def test_a_crowd_scores_and_asks_for_health_by_either_way(way, reward, gateway):
    there = way(reward if way is OverGrpc else gateway)
    with there.caller() as score, there.probe() as ask:
        assert score(ITEMS) > 0
        assert seconds_of(ask) < 60


def test_an_item_that_failed_raises_what_its_code_says():
    assert value({"reward": 0.5}) == 0.5
    with pytest.raises(FailedPrecondition, match="too soon"):
        value({"error": {"code": "FAILED_PRECONDITION", "message": "too soon"}})
    assert error_of({**FULL, "retry_after_seconds": 2.5}).retry_after == 2.5
