"""Reward functions in other processes, over restarts, and against a service that wants a token."""

import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from adapter_cases import rewards, serving

from plaudit import InvalidArgument, Unauthenticated
from plaudit.adapters.scorer import Scorer
from plaudit.adapters.trl import PlauditReward
from plaudit.adapters.verl import compute_score

PAIRS = [("the film", " is good"), ("the film", " is bad"), ("a dull", " story")]


@pytest.fixture(scope="module")
def address(tiny_reward):
    with serving(tiny_reward) as address:
        yield address


IN_A_CHILD = """
import multiprocessing, pickle, sys
from plaudit.adapters.trl import PlauditReward

def child(pickled, queue):
    queue.put(pickle.loads(pickled)(["the film"] * 2, [" is good", " is bad"]))

def answers(reward, method):
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=child, args=(pickle.dumps(reward), queue))
    process.start()
    answer = queue.get(timeout=30)
    process.join(30)
    assert process.exitcode == 0, process.exitcode
    return answer

if __name__ == "__main__":
    reward = PlauditReward(sys.argv[1])
    before = answers(reward, sys.argv[2])
    here = reward(["the film"] * 2, [" is good", " is bad"])  # from here on there are connections and threads
    during = [answers(reward, sys.argv[2]) for _ in range(3)]
    assert before == here == during[0] == during[1] == during[2], (before, here, during)
    assert here == reward(["the film"] * 2, [" is good", " is bad"])
    print(*here)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_scores_in_child_processes_before_and_after_its_parent_did(address, method, tmp_path):
    script = tmp_path / "child.py"
    script.write_text(IN_A_CHILD)
    done = subprocess.run(
        [sys.executable, str(script), address, method], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert [float(word) for word in done.stdout.split()] == pytest.approx(
        rewards(address, PAIRS[:2]), abs=1e-6
    )


def test_a_copy_by_pickle_asks_the_same(address):
    reward = PlauditReward(address, name="films")
    copy = pickle.loads(pickle.dumps(reward))
    assert copy.__name__ == "films"
    assert copy(["the film"], [" is good"]) == reward(["the film"], [" is good"])


def test_many_threads_share_a_client(address):
    with ThreadPoolExecutor(16) as threads:
        scored = list(
            threads.map(
                lambda number: compute_score("films", f" {number}", "", {"prompt": "x"}, address=address)[
                    "score"
                ],
                range(200),
            )
        )
    assert scored == pytest.approx(rewards(address, [("x", f" {number}") for number in range(200)]), abs=1e-5)


def test_a_service_that_restarts_is_waited_for(tiny_reward, caplog):
    with serving(tiny_reward) as address:
        expected = rewards(address, PAIRS)
        scorer = Scorer.of(address, timeout=0.6, patience=60)
        assert [result.reward for result in scorer.score(PAIRS)] == pytest.approx(expected, abs=1e-6)
    answered = []
    asking = threading.Thread(target=lambda: answered.extend(scorer.score(PAIRS)))
    asking.start()
    while "asking again" not in caplog.text:
        assert asking.is_alive()
        asking.join(0.05)
    with serving(tiny_reward, address=address):
        asking.join(60)
        assert [result.reward for result in answered] == pytest.approx(expected, abs=1e-6)


def test_an_unknown_model_is_no_reason_to_wait(address):
    with pytest.raises(Exception, match="films") as caught:
        Scorer.of(address, model="films").score(PAIRS)
    assert type(caught.value).__name__ == "NotFound"


def test_truncation_is_the_callers_choice(address):
    long = [("the film " * 100, " is good")]
    (refused,) = Scorer.of(address).score(long)
    assert refused.code == "INVALID_ARGUMENT"
    (left,) = Scorer.of(address, truncation="left").score(long)
    (right,) = Scorer.of(address, truncation="right").score(long)
    assert (left.truncation, right.truncation) == ("left", "right")
    assert left.reward != right.reward


def test_the_token_is_the_processs_own(tiny_reward, monkeypatch):
    with serving(tiny_reward, token="secret") as address:
        monkeypatch.setenv("PLAUDIT_TOKEN", "secret")
        assert Scorer.of(address).score(PAIRS[:1])[0].reward
        monkeypatch.setenv("PLAUDIT_TOKEN", "wrong")
        with pytest.raises(Unauthenticated):
            Scorer.of(address, timeout=5).score(PAIRS[:1])  # another scorer: the first has its client already


def test_an_item_that_cant_even_be_sent_is_a_failure_of_its_own(address):
    good, bad = Scorer.of(address).score([PAIRS[0], ("the film", "\ud800")])
    assert good.reward == pytest.approx(rewards(address, PAIRS[:1])[0], abs=1e-6)
    assert bad.code == "INVALID_ARGUMENT"
    with pytest.raises(InvalidArgument, match="completion 1"):
        PlauditReward(address)(["the film", "the film"], [" is good", "\ud800"])


def test_nothing_of_a_trainer_and_no_torch_is_imported():
    modules = "plaudit.adapters.trl, plaudit.adapters.openrlhf, plaudit.adapters.verl"
    code = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert not {"torch", "trl", "verl", "openrlhf", "datasets", "transformers"} & set(loaded.stdout.split())
