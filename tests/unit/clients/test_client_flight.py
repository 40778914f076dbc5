"""The bookkeeping of a stream: order, the window, and how long the lack of results is borne."""

import math

import pytest
from hypothesis import given, strategies as st
from scripted_streams import expected, pairs, scored

from plaudit import Internal, ItemFailure, NotFound, Overloaded, Unavailable, Unreachable
from plaudit.clients import flight as flight_module
from plaudit.clients.errors import Details
from plaudit.clients.flight import FIRST_PAUSE, LONGEST_PAUSE, REOPENINGS, Endurance, Flight


def answer(flight, *messages):
    flight.answer(scored(messages).results)


@given(st.permutations(range(12)), st.integers(1, 5))
def test_results_come_out_in_order_whatever_the_order_they_come_in(order, chunk):
    flight = Flight(12)
    messages = [flight.add(pair) for pair in pairs(12)]
    given_back = []
    for start in range(0, 12, chunk):
        answer(flight, *(messages[number] for number in order[start : start + chunk]))
        while flight.is_ready:
            given_back.append(flight.pop())
        missing = [number for number in range(12) if number not in order[: start + chunk]]
        assert len(given_back) == min(missing, default=12)
        assert [int(one.item_id) for one in flight.unanswered] == missing
    assert given_back == expected(12)
    assert not flight.is_waiting


def test_room_ends_with_the_window_or_with_the_bytes_that_have_no_result(monkeypatch):
    monkeypatch.setattr(flight_module, "MAX_WAITING_BYTES", 2000)
    flight = Flight(100)
    first = flight.add(("p", "0"))
    assert flight.has_room
    long = flight.add(("p" * 2000, "1"))
    assert not flight.has_room
    answer(flight, long)
    assert flight.has_room, "the result is small"
    answer(flight, first)


def test_room():
    flight = Flight(2)
    first, second = (flight.add(pair) for pair in pairs(2))
    assert not flight.has_room
    answer(flight, second)
    assert not flight.has_room, "its result isn't given back yet"
    answer(flight, first)
    flight.pop()
    assert flight.has_room


def test_what_cannot_be_sent_has_its_result_at_once():
    flight = Flight(3)
    assert flight.add("text") is None
    assert (flight.is_ready, flight.is_waiting) == (True, False)
    assert isinstance(flight.pop(), ItemFailure)
    message = flight.add(("p", "1"))
    assert flight.add("text") is None
    assert not flight.is_ready, "the one before has no result yet"
    answer(flight, message)
    assert flight.pop() == expected(1, 1)[0]
    assert flight.pop().violations[0].field == "item"


@pytest.mark.parametrize("item_id", ["1", "-0", "", "zero", "²", "00"])
def test_results_of_nothing_in_flight(item_id):
    flight = Flight(2)
    message = flight.add(("p", "0"))
    results = scored([message]).results
    results[0].item_id = item_id
    with pytest.raises(Internal, match="isn't in flight"):
        flight.answer(results)


# ---- endurance ----


def away(retry_after=None, kind=Unavailable):
    return kind("away", details=Details(retry_after=retry_after))


def test_pauses_grow_to_a_longest():
    endurance = Endurance(1e6)
    pauses = [endurance.pause_after(away()) for _ in range(REOPENINGS)]
    for number, pause in enumerate(pauses):
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2**number)
        assert longest / 2 <= pause <= longest
    assert endurance.pause_after(away()) is None


def test_the_service_says_how_long_at_least():
    assert Endurance(100).pause_after(away(30, Overloaded)) > 30


@pytest.mark.parametrize("retry_after", [9.95, 10.0, math.inf])
def test_no_pause_outlasts_the_endurance(retry_after):
    assert Endurance(10).pause_after(away(retry_after)) is None


def test_results_renew_it():
    endurance = Endurance(10)
    for _ in range(3 * REOPENINGS):
        assert endurance.pause_after(away(kind=Unreachable)) is not None
        endurance.spent = 9.9
        assert endurance.left == pytest.approx(0.1)
        endurance.renew()
        assert endurance.left == 10
    endurance.spent = 12
    assert endurance.left == 0


def test_what_another_stream_would_not_mend():
    assert Endurance(10).pause_after(NotFound("no model")) is None
