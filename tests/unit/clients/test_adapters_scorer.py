"""The settings of a scorer, and how items that come one by one become few calls."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from plaudit import InvalidArgument, ItemFailure, Reward, Unreachable
from plaudit.adapters.scorer import CALL_ITEMS, Collector, Scorer, error_of
from plaudit.adapters.trl import PlauditReward

PAIR = ("the film", " is good")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in ("", "_MODEL", "_TRUNCATION"):
        monkeypatch.delenv(f"PLAUDIT_REWARD{name}", raising=False)


# --- settings ---


@pytest.mark.parametrize(
    "address",
    ["one:1,two:2", " one:1 , two:2", ["one:1", "two:2"], ("one:1", "two:2"), iter(["one:1", "two:2"])],
)
def test_several_addresses(address):
    assert Scorer.of(address).addresses == ("one:1", "two:2")


def test_the_environment_says_what_isnt_given(monkeypatch):
    monkeypatch.setenv("PLAUDIT_REWARD", "one:1,two:2")
    monkeypatch.setenv("PLAUDIT_REWARD_MODEL", "films")
    monkeypatch.setenv("PLAUDIT_REWARD_TRUNCATION", "left")
    assert Scorer.of() == Scorer(("one:1", "two:2"), "films", "left")
    given = Scorer.of("three:3", model="", truncation="right", timeout=5, patience=6, calls=7)
    assert given == Scorer(("three:3",), "", "right", 5, 6, 7)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({}, "address"),
        ({"address": ""}, "address"),
        ({"address": []}, "address"),
        ({"address": "nonsense"}, "address"),
        ({"address": "one:1,,two:2"}, "address"),
        ({"address": "one:1", "timeout": 0}, "timeout"),
        ({"address": "one:1", "truncation": "middle"}, "truncation"),
        ({"address": "one:1", "calls": 0}, "calls"),
    ],
)
def test_what_cant_be_is_refused_at_once(arguments, field):
    with pytest.raises(InvalidArgument) as caught:
        Scorer.of(**arguments)
    assert caught.value.violations[0].field == field


def test_an_unknown_truncation_of_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("PLAUDIT_REWARD_TRUNCATION", "middle")
    with pytest.raises(InvalidArgument, match="'middle' is none of error, left, right"):
        Scorer.of("one:1")


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="truncate"):
        Scorer.of("one:1", truncate="left")


def test_it_is_plain_values(monkeypatch):
    monkeypatch.setenv("PLAUDIT_TOKEN", "secret")
    monkeypatch.setenv("PLAUDIT_INSECURE", "1")
    scorer = Scorer.of("one:1", model="films")
    assert pickle.loads(pickle.dumps(scorer)) == scorer
    assert hash(pickle.loads(pickle.dumps(scorer))) == hash(scorer)
    assert b"secret" not in pickle.dumps(PlauditReward("one:1"))


def test_a_service_that_is_nowhere_is_given_up_after_its_patience(unused_address, caplog, monkeypatch):
    monkeypatch.setattr("plaudit.adapters.scorer.PAUSE_S", 0.01)
    with pytest.raises(Unreachable, match=unused_address):
        Scorer.of(unused_address, timeout=0.3, patience=3).score([PAIR])
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert f"reward at {unused_address}" in caplog.text
    assert "asking again for " in caplog.text


def test_without_patience_it_is_given_up_at_once(unused_address, caplog):
    with pytest.raises(Unreachable):
        Scorer.of(unused_address, timeout=0.3, patience=0).score([PAIR])
    assert caplog.records == []


def test_each_of_many_callers_learns_that_the_service_is_nowhere(unused_address):
    scorer = Scorer.of(unused_address, timeout=0.3, patience=0)
    futures = [scorer.submit("the film", " is good", None) for _ in range(40)]
    assert wait(futures, 30).not_done == set()
    assert all(isinstance(future.exception(), Unreachable) for future in futures)


def test_an_item_that_cant_be_is_its_callers_error(unused_address):
    with pytest.raises(InvalidArgument, match="neither text nor"):
        Scorer.of(unused_address).submit(7, " is good", None)


def test_a_response_without_text_has_the_reward_that_was_declared(unused_address):
    scorer = Scorer.of(unused_address, timeout=0.3, patience=0)
    assert scorer.submit("the film", "", -2.5).result(0) == Reward(-2.5, -2.5, token_count=0)
    assert isinstance(scorer.submit("the film", "", None).exception(30), Unreachable)  # it was asked


def test_an_error_says_what_could_not_be_scored():
    failure = ItemFailure("INVALID_ARGUMENT", "item.pair.response: is empty")
    error = error_of("completion 3", failure)
    assert isinstance(error, InvalidArgument)
    assert str(error) == "completion 3 can't be scored: item.pair.response: is empty"


# --- collecting ---


class Recorder:
    """Scores by length; remembers the calls, and holds each until it is let go."""

    def __init__(self, *, held=False):
        self.calls = []
        self.running = self.most_running = 0
        self._lock = threading.Lock()
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)
        if not held:
            self.go.set()

    def __call__(self, items):
        with self._lock:
            self.calls.append(list(items))
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        self.begun.release()
        assert self.go.wait(30)
        with self._lock:
            self.running -= 1
        return [Reward(len(response), len(response), token_count=1) for _, response in items]


def test_an_item_that_comes_alone_goes_at_once():
    score = Recorder()
    assert Collector(score, 2).submit(PAIR).result(30).reward == len(PAIR[1])
    assert score.calls == [[PAIR]]


def test_items_that_wait_go_together_in_a_bounded_number_of_calls():
    score = Recorder(held=True)
    collector = Collector(score, 2)
    items = [("p", "x" * number) for number in range(1, 101)]
    futures = [collector.submit(item) for item in items]
    for _ in range(2):
        assert score.begun.acquire(timeout=30)
    score.go.set()
    assert [future.result(30).reward for future in futures] == list(range(1, 101))
    assert sorted(item for call in score.calls for item in call) == sorted(items)
    assert score.most_running == 2
    assert max(map(len, score.calls)) == CALL_ITEMS
    assert len(score.calls) <= 2 + -(-100 // CALL_ITEMS)


def test_from_many_threads_each_gets_its_own():
    collector = Collector(Recorder(), 3)
    with ThreadPoolExecutor(16) as threads:
        results = threads.map(
            lambda number: collector.submit(("p", "x" * number)).result(30).reward, range(1, 300)
        )
    assert list(results) == list(range(1, 300))


def test_an_item_that_nobody_waits_for_is_left_out():
    score = Recorder(held=True)
    collector = Collector(score, 1)
    first = collector.submit(PAIR)
    assert score.begun.acquire(timeout=30)
    given_up, kept = collector.submit(("p", "given up")), collector.submit(("p", "kept"))
    assert given_up.cancel()
    score.go.set()
    assert first.result(30).reward == len(PAIR[1])
    assert kept.result(30).reward == len("kept")
    assert score.calls == [[PAIR], [("p", "kept")]]


def test_a_call_that_fails_is_the_error_of_all_that_were_in_it_and_of_no_others():
    outcomes = iter([InvalidArgument("broken")])

    def score(items):
        for outcome in outcomes:
            raise outcome
        return [Reward(0, 0, 1) for _ in items]

    collector = Collector(score, 1)
    with pytest.raises(InvalidArgument, match="broken"):
        collector.submit(PAIR).result(30)
    assert collector.submit(PAIR).result(30) == Reward(0, 0, 1)
