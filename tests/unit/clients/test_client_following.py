"""Followers of a stream of events: which ends are borne, and for how long."""

import time

import pytest

from plaudit.clients.errors import DeadlineExceeded, Internal, Overloaded, Unavailable
from plaudit.clients.following import Patience

ENDS = [Unavailable("draining"), Overloaded("nobody read the results"), DeadlineExceeded("300 s")]


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("end", ENDS, ids=lambda end: type(end).__name__)
def test_a_stream_that_brought_something_may_have_been_read_slowly(clock, end):
    patience = Patience(10)
    for _ in range(3):
        patience.answered()
        clock[0] += 1000
        patience.bear(end)


@pytest.mark.parametrize("end", ENDS[:2], ids=["away", "full"])
def test_a_service_that_brings_nothing_is_given_up(clock, end):
    patience = Patience(10)
    patience.answered()
    clock[0] += 1000
    patience.bear(end)
    clock[0] += 10
    patience.bear(end)
    clock[0] += 1
    with pytest.raises(type(end)):
        patience.bear(end)


def test_a_stream_without_news_that_ran_its_time_was_answered(clock):
    patience = Patience(10)
    for _ in range(3):
        clock[0] += 300
        patience.bear(DeadlineExceeded("300 s"))


def test_what_another_try_can_not_mend_is_raised_at_once():
    patience = Patience(10)
    patience.answered()
    with pytest.raises(Internal):
        patience.bear(Internal("a fault"))
