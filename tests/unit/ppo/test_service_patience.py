"""Calls cut to a service's limits, and waits that end."""

import os
import signal
import threading
import time

import pytest
from hypothesis import given, strategies as st

from plaudit.clients.data import CallLimits, ModelVersion
from plaudit.clients.errors import (
    DeadlineExceeded,
    Details,
    InvalidArgument,
    Overloaded,
    Unavailable,
)
from trainer.errors import Stopped
from trainer.ppo import patience
from trainer.ppo.batches import batches
from trainer.ppo.patience import Away, Endpoint, Patience
from trainer.ppo.remote import check_same_model
from trainer.ppo.roles import RoleUnavailable, StaleWeights
from trainer.stopping import StopSignal

REWARD = Endpoint("reward", "host:5", "services.reward")


def limits(items, tokens):
    return CallLimits(
        max_items=items, max_tokens=tokens, max_message_bytes=1 << 20, max_request_bytes=1 << 20
    )


def test_batches_fill_up_to_the_first_limit():
    assert list(batches([3, 3, 3, 1, 9, 1], limits(3, 8))) == [
        range(2),
        range(2, 4),
        range(4, 5),
        range(5, 6),
    ]
    assert list(batches([1] * 5, limits(2, 100))) == [range(2), range(2, 4), range(4, 5)]
    assert list(batches([], limits(2, 100))) == []


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 9), st.integers(1, 60))
def test_batches_hold_every_row_once_in_order_and_only_a_lone_row_exceeds_a_limit(sizes, items, tokens):
    cut = list(batches(sizes, limits(items, tokens)))
    assert [row for rows in cut for row in rows] == list(range(len(sizes)))
    for rows in cut:
        assert len(rows) <= items
        assert sum(sizes[row] for row in rows) <= tokens or len(rows) == 1


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self, monkeypatch):
        self.now, self.pauses = 1000.0, []
        monkeypatch.setattr(patience.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(StopSignal, "wait", lambda stop, seconds: self.sleep(seconds))

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds
        return False


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def failing(*errors):
    """A call that raises these, one after the other, and then answers."""
    left = list(errors)

    def call():
        if left:
            raise left.pop(0)
        return "answer"

    return call


def test_a_service_that_comes_back_is_waited_for_with_growing_pauses(clock):
    away = [Unavailable("loading"), DeadlineExceeded("slow"), Overloaded("full")]
    assert Patience(60).call(REWARD, failing(*away)) == "answer"
    assert clock.pauses == pytest.approx([0.2, 0.4, 0.8])


def test_a_service_that_says_when_to_come_back_is_obeyed(clock):
    assert (
        Patience(60).call(REWARD, failing(Overloaded("full", details=Details(retry_after=7.5)))) == "answer"
    )
    assert clock.pauses == [7.5]


def test_patience_ends_on_time_and_says_who_where_since_when_and_why(clock):
    with pytest.raises(RoleUnavailable) as caught:
        Patience(3).call(REWARD, failing(*[Unavailable("connection refused")] * 99))
    assert sum(clock.pauses) == pytest.approx(3)
    assert str(caught.value).startswith("reward at host:5 (services.reward) has not answered since ")
    assert "(3 s): connection refused" in str(caught.value)
    assert isinstance(caught.value.__cause__, Unavailable)


def test_who_is_waited_for_can_be_seen_meanwhile(clock):
    patient, seen = Patience(60), []

    def call():
        seen.append([patient.waits_for(role) for role in ("reward", "reference")])
        if len(seen) < 3:
            raise Unavailable("loading")
        return "answer"

    assert patient.call(REWARD, call) == "answer"
    assert seen == [[False, False], [True, False], [True, False]]
    assert not patient.waits_for("reward")


def test_an_answer_in_between_begins_the_wait_anew(clock):
    patient, away = Patience(3), Away(REWARD, Unavailable("loading"))
    with patient.wait() as waiting:
        for _ in range(3):
            waiting.pause(away)
        assert patient.waits_for("reward")
        waiting.renew()
        assert not patient.waits_for("reward")
        waiting.pause(away)
    assert clock.pauses == pytest.approx([0.2, 0.4, 0.8, 0.2])


def test_patience_is_counted_from_the_first_failure_however_long_that_call_took(clock):
    made = []

    def hang():
        made.append(clock.now)
        clock.now += 300
        raise DeadlineExceeded("no answer within 300.0 s")

    with pytest.raises(RoleUnavailable, match=r"\(600 s\): no answer within 300"):
        Patience(180).call(REWARD, hang)
    assert made == [1000.0, pytest.approx(1300.2)]


def test_a_call_that_hangs_is_told_once_while_it_lasts(monkeypatch, caplog):
    monkeypatch.setattr(patience, "SLOW_S", 0.05)
    patient, until = Patience(60), time.monotonic() + 10
    with patient.calling(REWARD):
        assert not patient.waits_for("reward")
        while not caplog.messages and time.monotonic() < until:
            time.sleep(0.01)
        assert patient.waits_for("reward") and not patient.waits_for("reference")
        time.sleep(0.2)
    assert not patient.waits_for("reward")
    assert caplog.messages == [f"{REWARD} has not answered for 0 s; waiting until the call ends"]


def test_a_call_that_ends_in_time_is_no_wait(monkeypatch, caplog):
    monkeypatch.setattr(patience, "SLOW_S", 0.05)
    patient = Patience(60)
    assert patient.call(REWARD, failing()) == "answer"
    time.sleep(0.2)
    assert not patient.waits_for("reward") and not caplog.messages


def test_any_judge_is_waited_for_as_a_judge(clock):
    patient = Patience(60)
    with patient.wait() as waiting:
        waiting.pause(
            Away(Endpoint("judge my own", "host:6", "evaluation.judges.my own.reward"), Unavailable(""))
        )
        assert patient.waits_for("judge") and not patient.waits_for("reward")


def test_nobody_is_waited_for_once_patience_has_ended(clock):
    patient = Patience(3)
    with pytest.raises(RoleUnavailable):
        patient.call(REWARD, failing(*[Unavailable("connection refused")] * 99))
    assert not patient.waits_for("reward")


def test_what_would_be_said_again_is_not_asked_again(clock):
    with pytest.raises(InvalidArgument):
        Patience(60).call(REWARD, failing(InvalidArgument("no")))
    assert clock.pauses == []


def test_sigterm_ends_a_wait_at_once():
    patience = Patience(60)
    began = time.monotonic()
    with patience.stop, pytest.raises(Stopped, match=r"stopped while waiting for reward at host:5") as caught:
        patience.call(REWARD, dying(Unavailable("connection refused", details=Details(retry_after=50))))
    assert time.monotonic() - began < 30
    assert caught.value.resumable


def dying(error):
    """A call that fails, and has this process told to stop a moment later."""

    def call():
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        raise error

    return call


def test_a_service_restarted_with_another_model_is_refused():
    before = ModelVersion("old", "", 0, "a" * 64, "t")
    check_same_model(REWARD, before, ModelVersion("elsewhere", "", 0, "a" * 64, "t"))
    with pytest.raises(
        StaleWeights, match=r"services\.reward\) now serves new bbbbbbbbbbbb, .* it was old aaaaaaaaaaaa"
    ):
        check_same_model(REWARD, before, ModelVersion("new", "", 0, "b" * 64, "t"))
