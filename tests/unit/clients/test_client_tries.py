"""When a call is made again: full services until the deadline, and never before they want to be asked."""

import math

import pytest
from hypothesis import given, strategies as st

from plaudit import Internal, Overloaded, Unavailable, Unreachable
from plaudit.clients.errors import Details, Where
from plaudit.clients.replicas import Replicas
from plaudit.clients.tries import BLIND_SPREAD, BLIND_TRIES, LONGEST_SPREAD, Attempt, Tries


def tries_at(*addresses, timeout=1000.0, idempotent=True):
    attempts = [
        Attempt(index, Where("reward", address, "Score", "id"), (), False)
        for index, address in enumerate(addresses)
    ]
    return Tries(attempts, timeout, idempotent, Replicas(len(addresses)))


def full(retry_after=0.5):
    return Overloaded("full", details=Details(retry_after=retry_after))


def test_addresses_come_in_turn():
    tries = tries_at("a:1", "b:1")
    assert [next(tries).where.target for _ in range(5)] == ["a:1", "b:1", "a:1", "b:1", "a:1"]


def test_another_address_is_asked_at_once():
    tries = tries_at("a:1", "b:1", "c:1")
    for failure in (full(100), Unreachable("away")):
        next(tries)
        assert tries.pause_after(failure) == 0


@given(st.floats(0.001, 30), st.integers(1, 30))
def test_a_full_service_is_asked_when_it_wants_to_be(retry_after, count):
    tries = tries_at("a:1")
    for made in range(count):
        next(tries)
        pause = tries.pause_after(full(retry_after))
        assert retry_after <= pause <= retry_after + min(LONGEST_SPREAD, retry_after * 2**made)


def test_pauses_are_spread():
    """Callers that were turned away together don't come back together."""
    pauses = set()
    for _ in range(50):
        tries = tries_at("a:1")
        next(tries)
        pauses.add(tries.pause_after(full()))
    assert len(pauses) > 40


def test_the_slowest_of_the_full_ones_sets_the_pause():
    tries = tries_at("a:1", "b:1")
    next(tries)
    assert tries.pause_after(full(7)) == 0
    next(tries)
    assert tries.pause_after(full(0.1)) >= 7


@pytest.mark.parametrize("turn", [[full(), Unavailable("away")], [Unavailable("away"), full()]])
def test_one_that_is_full_is_worth_another_round_whoever_is_away(turn):
    tries = tries_at("a:1", "b:1")
    for failure in turn:
        next(tries)
        pause = tries.pause_after(failure)
    assert pause >= 0.5


def test_those_that_are_away_were_tried_again_by_grpc():
    tries = tries_at("a:1", "b:1")
    next(tries)
    assert tries.pause_after(Unavailable("away")) == 0
    next(tries)
    assert tries.pause_after(Unavailable("away")) is None


def test_a_new_round_begins_anew():
    tries = tries_at("a:1")
    next(tries)
    assert tries.pause_after(full()) is not None
    next(tries)
    assert tries.pause_after(Unavailable("away")) is None


@pytest.mark.parametrize("retry_after", [10.0, 11.0, math.inf])
def test_not_beyond_the_deadline(retry_after):
    tries = tries_at("a:1", timeout=10)
    next(tries)
    assert tries.pause_after(full(retry_after)) is None


@given(st.floats(0.1, 5))
def test_half_of_what_is_left_is_for_the_call_itself(timeout):
    tries = tries_at("a:1", timeout=timeout)
    for _ in range(12):  # as if pauses took no time
        next(tries)
        pause = tries.pause_after(full(0.01))
        assert pause <= max(0.01, timeout / 2)


def test_a_service_that_does_not_say_when_is_asked_a_few_times():
    tries = tries_at("a:1")
    pauses = []
    for _ in range(BLIND_TRIES):
        next(tries)
        pauses.append(tries.pause_after(full(None)))
    assert pauses[-1] is None
    assert all(0 <= pause <= BLIND_SPREAD * 4 for pause in pauses[:-1])


@pytest.mark.parametrize("failure", [full(), Unavailable("away")])
def test_what_may_do_harm_is_done_once(failure):
    tries = tries_at("a:1", "b:1", idempotent=False)
    next(tries)
    assert tries.pause_after(failure) is None


def test_what_would_fail_again_is_not_tried_again():
    tries = tries_at("a:1", "b:1")
    next(tries)
    assert tries.pause_after(Internal("broken")) is None
