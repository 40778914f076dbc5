"""An address that keeps failing is left out for a while, and asked again by one call."""

import asyncio
import contextlib

import grpc
import pytest
from hypothesis import given, strategies as st
from scripted_servers import REWARD, SCORED, refuse
from scripted_streams import GONE, expected, pairs
from still_clock import Clock

from plaudit import AsyncRewardClient, DeadlineExceeded, InvalidArgument, RewardClient, Unavailable
from plaudit.clients import flight, replicas
from plaudit.clients.replicas import FAILURES, FIRST_REST, LONGEST_REST, Replicas

AWAY = refuse(grpc.StatusCode.UNAVAILABLE, "away", pushback_ms=-1)
WRONG = refuse(grpc.StatusCode.INVALID_ARGUMENT, "wrong")
PAIR = [("the film", " is good")]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(replicas, "time", clock)
    return clock


def fail(known, index, times=FAILURES):
    for _ in range(times):
        known.failed(index)


# --- which are worth a call ---


def test_good_ones_take_turns():
    known = Replicas(3)
    assert [known.in_turn() for _ in range(4)] == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]


def test_a_few_failures_are_borne(clock):
    known = Replicas(2)
    for _ in range(10):
        fail(known, 0, FAILURES - 1)
        known.answered(0)
    assert sorted(known.in_turn()) == [0, 1]


def test_who_keeps_failing_is_left_out_and_the_others_share_its_turns(clock):
    known = Replicas(3)
    fail(known, 0)
    assert [known.in_turn() for _ in range(4)] == [[1, 2], [2, 1], [1, 2], [2, 1]]


def test_one_call_finds_out_whether_it_is_back(clock):
    known = Replicas(3)
    fail(known, 0)
    clock.now += FIRST_REST
    assert known.in_turn()[0] == 0
    assert all(0 not in known.in_turn() for _ in range(5))
    known.answered(0)
    assert sorted(known.in_turn()) == [0, 1, 2]


def test_a_probe_that_never_ends_is_followed_by_another(clock):
    known = Replicas(2)
    fail(known, 0)
    for _ in range(3):
        clock.now += FIRST_REST
        assert known.in_turn()[0] == 0
        assert known.in_turn() == [1]


def test_rests_grow_up_to_a_bound(clock):
    known = Replicas(2)
    fail(known, 0)
    for doublings in range(1, 12):
        clock.now += LONGEST_REST
        assert known.in_turn()[0] == 0
        known.failed(0)
        rest = min(LONGEST_REST, FIRST_REST * 2**doublings)
        clock.now += 0.49 * rest
        assert known.in_turn() == [1]
        clock.now += 0.52 * rest
        assert known.in_turn()[0] == 0


def test_rests_are_spread(clock):
    """Clients that lost a replica together don't come back together."""
    ends = set()
    for _ in range(50):
        known = Replicas(2)
        fail(known, 0)
        ends.add(known._replicas[0].rests_until)
    assert len(ends) > 40


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=60))
def test_never_nobody_and_never_one_twice(count, outcomes):
    known = Replicas(count)
    for well, index in outcomes:
        (known.answered if well else known.failed)(index % count)
        order = known.in_turn()
        assert order
        assert len(set(order)) == len(order)
        assert set(order) <= set(range(count))


# --- with servers ---


def ask_sync(addresses, times, between=lambda number: None):
    outcomes = []
    with RewardClient(addresses) as client:
        for number in range(times):
            between(number)
            with contextlib.suppress(Unavailable, InvalidArgument):
                outcomes.append(client.score(PAIR)[0].reward)
    return outcomes


def ask_async(addresses, times, between=lambda number: None):
    async def run():
        outcomes = []
        async with AsyncRewardClient(addresses) as client:
            for number in range(times):
                between(number)
                with contextlib.suppress(Unavailable, InvalidArgument):
                    outcomes.append((await client.score(PAIR))[0].reward)
        return outcomes

    return asyncio.run(run())


@pytest.fixture(params=[ask_sync, ask_async], ids=["sync", "async"])
def ask(request):
    """ask(addresses, times, between): the scores that one client got."""
    return request.param


def test_a_replica_that_is_away_costs_a_few_tries_and_no_call(serve_reward, ask, clock):
    away, good = serve_reward(AWAY), serve_reward(SCORED)
    assert ask([away.address, good.address], 20) == [0.5] * 20
    assert len(away.heard) == FAILURES


def test_a_replica_that_is_back_gets_its_share_again(serve_reward, ask, clock):
    back, good = serve_reward(*[AWAY] * FAILURES, SCORED), serve_reward(SCORED)

    def between(number):
        clock.now += FIRST_REST if number == 12 else 0

    assert ask([back.address, good.address], 24, between) == [0.5] * 24
    assert len(back.heard) >= FAILURES + 6


def test_the_only_address_is_never_left_out(serve_reward, ask, clock):
    server = serve_reward(*[AWAY] * (FAILURES + 2), SCORED)
    assert ask(server.address, FAILURES + 4) == [0.5] * 2


# --- streams of scores ---


@pytest.fixture
def one_client(score_many, monkeypatch):
    """What the clients of a test know of their addresses, as if they were one client."""
    known = Replicas(2)
    monkeypatch.setattr("plaudit.clients.channel.Replicas", lambda count: known)
    monkeypatch.setattr(flight, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(flight, "LONGEST_PAUSE", 0.001)
    return known


def test_streams_that_break_leave_an_address_out(serve, streams, score_many, one_client, clock):
    away = serve(REWARD, {"ScoreStream": [streams.answer_then(0, GONE)]})
    good = serve(REWARD, {"ScoreStream": [streams.answer], "Score": [SCORED]})
    addresses = [away.address, good.address]
    for _ in range(2 * FAILURES + 4):
        assert list(score_many(addresses, pairs(3))) == expected(3)
    assert len(away.heard) == FAILURES
    assert one_client.in_turn() == [1], "and other calls know it, too"


def test_a_result_of_a_stream_brings_an_address_back(serve, streams, score_many, one_client, clock):
    both = [serve(REWARD, {"ScoreStream": [streams.answer]}) for _ in range(2)]
    fail(one_client, 0)
    clock.now += FIRST_REST
    assert list(score_many([each.address for each in both], pairs(3))) == expected(3)
    assert len(both[0].heard) == 1
    assert sorted(one_client.in_turn()) == [0, 1]


def test_a_stream_in_which_nothing_comes_is_a_failure(serve, streams, score_many, one_client, clock):
    silent = serve(REWARD, {"ScoreStream": [streams.never_answer]})
    for _ in range(FAILURES):
        fail(one_client, 1, FAILURES)
        with pytest.raises(DeadlineExceeded):
            list(score_many([silent.address] * 2, pairs(1), timeout=0.05))
    assert one_client._replicas[0].failures == FAILURES


def test_a_stream_that_is_refused_was_answered(serve, streams, score_many, one_client, clock):
    full = refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "nobody read the results", pushback_ms=1)
    server = serve(REWARD, {"ScoreStream": [streams.answer_then(0, full), streams.answer]})
    fail(one_client, 0, FAILURES - 1)
    assert list(score_many([server.address] * 2, pairs(3))) == expected(3)
    assert [each.failures for each in one_client._replicas] == [0, 0]


def test_a_refusal_is_an_answer(serve_reward, ask, clock):
    wrong = serve_reward(WRONG)
    assert ask([wrong.address], 2 * FAILURES) == []
    assert len(wrong.heard) == 2 * FAILURES
