"""An outage isn't made worse: what is sent beyond one try a call comes out of a budget of the client's."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from free_ports import free_address
from scripted_servers import REWARD, SCORED, refuse
from scripted_streams import GONE, expected, pairs
from still_clock import Clock

from plaudit import AsyncRewardClient, DeadlineExceeded, Overloaded, RewardClient, Unavailable
from plaudit.clients import budget as budget_module, flight
from plaudit.clients.budget import A_SECOND, MOST, SHARE, Budget
from plaudit.clients.errors import Where
from plaudit.clients.replicas import Replicas
from plaudit.clients.tries import Attempt, Tries

AWAY = refuse(grpc.StatusCode.UNAVAILABLE, "away", pushback_ms=-1)
PAIR = [("the film", " is good")]


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(budget_module, "time", clock)
    return clock


def drain(budget):
    while budget.spend():
        pass


# ---- the budget ----


def test_it_comes_back_with_calls():
    budget = Budget()
    assert [budget.spend() for _ in range(int(MOST) + 1)] == [True] * int(MOST) + [False]
    for _ in range(int(1 / SHARE) + 1):
        budget.earn()
    assert [budget.has_some, budget.spend(), budget.has_some, budget.spend()] == [True, True, False, False]


def test_it_comes_back_with_time(clock):
    budget, calls_only = Budget(A_SECOND), Budget()
    for each in (budget, calls_only):
        drain(each)
    clock.now += 1 / A_SECOND
    assert [budget.spend(), budget.spend(), calls_only.spend()] == [True, False, False]


def test_it_never_grows_beyond_its_most(clock):
    budget = Budget(A_SECOND)
    for _ in range(100):
        budget.earn()
    clock.now += 1e6
    assert [budget.spend() for _ in range(int(MOST) + 1)] == [True] * int(MOST) + [False]


# ---- the tries of a call ----


@pytest.fixture
def replicas():
    return Replicas(3)


def tries_at(replicas, timeout=100.0):
    where = Where("reward", "host:1", "Score", "id")
    return Tries([Attempt(index, where, (), False) for index in range(3)], timeout, True, replicas)


def pauses(tries, *failures):
    given = []
    for failure in failures:
        next(tries)
        given.append(tries.pause_after(failure))
    return given


def left(budget):
    count = 0
    while budget.spend():
        count += 1
    return count


@pytest.mark.parametrize("last", [Unavailable("away"), DeadlineExceeded("silent")])
def test_a_round_in_vain_takes_one(replicas, last):
    assert pauses(tries_at(replicas), Unavailable("away"), Unavailable("away"), last) == [0.0, 0.0, None]
    assert left(replicas.budget) == MOST - 1


def test_a_call_that_begins_without_any_is_made_once(replicas):
    drain(replicas.budget)
    assert pauses(tries_at(replicas), Unavailable("away")) == [None]


def test_a_call_that_went_on_does_so_to_the_end(replicas):
    """Or calls that began together, with one address left, would fail for each other."""
    tries = tries_at(replicas)
    assert pauses(tries, Unavailable("away")) == [0.0]
    drain(replicas.budget)
    assert pauses(tries, Unavailable("away")) == [0.0]


def test_full_services_have_nothing_to_do_with_it(replicas):
    drain(replicas.budget)
    assert pauses(tries_at(replicas), Overloaded("full"), Overloaded("full")) == [0.0, 0.0]
    drained = pauses(tries_at(replicas), Overloaded("full"), Unavailable("away"))
    assert drained[1] > 0, "the full one is asked again, later"


def test_without_time_nobody_else_is_asked(replicas):
    assert pauses(tries_at(replicas, timeout=1e-9), Unavailable("away")) == [None]
    assert left(replicas.budget) == MOST


# ---- with servers ----


def ask_sync(client, times):
    outcomes = []
    for _ in range(times):
        with contextlib.suppress(Unavailable):
            outcomes.append(client.score(PAIR)[0].reward)
    return outcomes


def ask_at_once(addresses, times):
    with RewardClient(addresses) as client, ThreadPoolExecutor(times) as pool:
        rewards = list(pool.map(lambda _: client.score(PAIR)[0].reward, range(times)))
        return rewards, left(client._replicas.budget)


def ask_at_once_async(addresses, times):
    async def run():
        async with AsyncRewardClient(addresses) as client:
            scores = await asyncio.gather(*(client.score(PAIR) for _ in range(times)))
            return [score[0].reward for score in scores], left(client._replicas.budget)

    return asyncio.run(run())


def test_with_all_addresses_out_calls_are_soon_made_once(serve_reward, clock):
    calls, servers = 60, [serve_reward(AWAY) for _ in range(3)]
    with RewardClient([server.address for server in servers]) as client:
        assert ask_sync(client, calls) == []
        heard = sum(len(server.heard) for server in servers)
        assert calls < heard <= calls + MOST * (len(servers) - 1)

        servers[0].behaviours["Score"] = [SCORED]
        clock.now += 1 / A_SECOND
        assert ask_sync(client, 20) == [0.5] * 20, "one that is back is found at once"


def test_async_calls_as_well(serve_reward):
    calls, servers = 60, [serve_reward(AWAY) for _ in range(3)]

    async def run():
        async with AsyncRewardClient([server.address for server in servers]) as client:
            for _ in range(calls):
                with pytest.raises(Unavailable):
                    await client.score(PAIR)

    asyncio.run(run())
    assert sum(len(server.heard) for server in servers) <= calls + MOST * (len(servers) - 1)


@pytest.mark.parametrize("ask", [ask_at_once, ask_at_once_async], ids=["sync", "async"])
@pytest.mark.parametrize("away", [1, 2])
def test_as_long_as_one_answers_any_crowd_goes_on(serve_reward, ask, away):
    """Also one that comes before anybody knows who is away, and is larger than the budget."""
    good, crowd = serve_reward(SCORED), 6 * int(MOST)
    addresses = [*(free_address() for _ in range(away)), good.address]
    assert ask(addresses, crowd) == ([0.5] * crowd, MOST)
    assert len(good.heard) == crowd


# ---- streams of scores ----


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch):
    monkeypatch.setattr(flight, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(flight, "LONGEST_PAUSE", 0.001)


def score_all(client, times):
    for _ in range(times):
        with pytest.raises(Unavailable):
            list(client.score_many(pairs(3)))


def score_all_async(address, times):
    async def run():
        async with AsyncRewardClient(address) as client:
            for _ in range(times):
                with pytest.raises(Unavailable):
                    [result async for result in client.score_many(pairs(3))]

    asyncio.run(run())


def test_in_an_outage_streams_are_soon_opened_once(serve, streams):
    server = serve(REWARD, {"ScoreStream": [streams.answer_then(0, GONE)]})
    with RewardClient(server.address) as client:
        score_all(client, 5)
    assert len(server.heard) == 5 + MOST


def test_async_streams_as_well(serve, streams):
    server = serve(REWARD, {"ScoreStream": [streams.answer_then(0, GONE)]})
    score_all_async(server.address, 5)
    assert len(server.heard) == 5 + MOST


def test_a_stream_that_may_not_be_opened_yet_waits(serve, streams, monkeypatch):
    server = serve(REWARD, {"ScoreStream": [streams.answer_then(0, GONE), streams.answer]})
    with RewardClient(server.address) as client:
        answers = iter([False, False, False, True])
        monkeypatch.setattr(Budget, "has_some", property(lambda _: next(answers)))
        assert list(client.score_many(pairs(3))) == expected(3)
    assert next(answers, None) is None
    assert len(server.heard) == 2


def test_a_service_that_only_starts_again_takes_nothing(serve, streams):
    server = serve(REWARD, {"ScoreStream": [*[streams.answer_then(1, GONE, heard=2)] * 20, streams.answer]})
    with RewardClient(server.address) as client:
        assert list(client.score_many(pairs(40), window=2)) == expected(40)
        assert left(client._replicas.budget) == MOST
