"""Whatever is killed, stopped or cut, whenever: a run that goes on has, bit for bit, the weights of one left
alone.

PLAUDIT_KILLS=15 makes it 30 runs that are killed at random; without it there are two. PLAUDIT_SCHEDULES=20
makes it 20 runs over lines that fail instead of one, and PLAUDIT_SCHEDULE=FILE one over those of a file.
"""

import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from chaos import read_schedule
from fault_schedule import LINE_SCENES, scenes
from killed_runs import LINES, LONGEST_S, POLICIES, TRAINER, Death, Site

from plaudit import DeadlineExceeded, PolicyClient
from plaudit.clients import replicas

RUNS = int(os.environ.get("PLAUDIT_KILLS", "1"))
SCHEDULES = (
    [None] if "PLAUDIT_SCHEDULE" in os.environ else range(int(os.environ.get("PLAUDIT_SCHEDULES", "1")))
)
SCHEDULE_S = 60.0
"""Seconds that a drawn schedule lasts; a run ends sooner, and with it the schedule."""
SOON_S = 0.3
"""Seconds of a deadline that is to pass."""


@pytest.fixture(scope="module")
def site(tmp_path_factory, tiny_policy, tiny_reward):
    with Site(tmp_path_factory.mktemp("killed"), tiny_policy, tiny_reward) as site:
        yield site


@pytest.fixture(scope="module")
def undisturbed(site):
    """What is left of a run that one replica served, and the seconds that it took."""
    began = time.monotonic()
    left = site.run("undisturbed", replicas=1)
    return left, time.monotonic() - began


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("seed", range(RUNS))
def test_random_kills_change_nothing(site, undisturbed, seed, replicas):
    expected, seconds = undisturbed
    chance = random.Random(f"{seed} {replicas}")
    victims = [TRAINER, "reward", "reference", *POLICIES[:replicas]]
    count = chance.randint(1, 4)
    kills = [(chance.choice(victims), chance.uniform(0, seconds / 2)) for _ in range(count)]
    assert site.run(f"seed-{seed}-{replicas}", replicas, kills) == expected, kills


def test_a_trainer_that_dies_at_every_bad_moment_in_turn(site, undisturbed):
    moments = [
        Death("trainer.ppo.run:PPORun._take_step"),  # before its first checkpoint, so it begins again
        Death("plaudit.clients:WeightsClient.commit", 2),  # in the midst of a push
        Death("trainer.checkpoints:sync", 3),  # in the middle of the first checkpoint
        Death("trainer.checkpoints:_remove_all_but", 2),  # the next one is in its place
        Death("trainer.ppo.heldout:HeldOut._write"),  # in an evaluation
        Death("trainer.outputs:replace_folder", 2),  # while it saves the best policy, or the last
        Death("trainer.ppo.products:write_json"),  # before it says that all is done
    ]
    assert site.run("trainer", replicas=2, deaths=[{TRAINER: each} for each in moments]) == undisturbed[0]


def test_policies_that_die_get_their_weights_back_before_they_answer(site, undisturbed):
    rounds = [
        {POLICIES[1]: Death("services.policy.weights:Pushes.commit")},
        {POLICIES[0]: Death("services.policy.engine:TorchEngine.submit", 2)},
        {policy: Death("services.policy.engine:TorchEngine.submit") for policy in POLICIES},
    ]
    assert site.run("policies", replicas=2, deaths=rounds) == undisturbed[0]


def test_a_run_waits_for_a_service_that_is_stopped_and_goes_on_with_it(site, undisturbed):
    stop = Death("services.reward.engine:RewardEngine.score", 2, signal.SIGSTOP)
    left, line, metrics = site.run_past("stopped", "reward", stop, call_timeout=1.0)
    assert f"reward at {site.services['reward'].listen()}: Score: no answer within " in line
    waits = {role: f"plaudit_ppo_waiting_{role} 1.0" in metrics for role in ("policy", "reward", "reference")}
    assert waits == {"policy": False, "reward": True, "reference": False}
    assert left == undisturbed[0]


@pytest.fixture
def clock(monkeypatch):
    """By which addresses rest; it stands still."""
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(replicas, "time", clock)
    return clock


def test_calls_to_a_service_that_is_stopped_end_in_time_and_another_serves_until_it_goes_on(site, clock):
    stopped = site.services[POLICIES[0]]
    stopped.kill()
    stopped.start(Death("services.policy.engine:TorchEngine.submit", by=signal.SIGSTOP))
    addresses = [site.wait_ready(policy) for policy in POLICIES]
    with PolicyClient(addresses) as client:

        def generate(timeout):
            return client.generate(["the film"], seeds=[7], max_new_tokens=2, timeout=timeout).sequences

        for _ in addresses:
            client.get_policy(timeout=LONGEST_S)  # there is a connection to each
        for _ in range(replicas.FAILURES):
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded, match=f"{addresses[0]}.*no answer within"):
                generate(SOON_S)
            assert SOON_S * 0.9 < time.monotonic() - began < SOON_S + 10
            assert generate(LONGEST_S)
        for _ in range(3):
            assert generate(LONGEST_S), "it isn't asked any more"
        stopped.go_on()
        clock.now += replicas.LONGEST_REST
        for _ in range(4):
            assert generate(LONGEST_S)
        assert sorted(client._replicas.in_turn()) == [0, 1], "the first of these calls was answered by it"


@pytest.mark.parametrize("seed", SCHEDULES)
def test_failing_lines_change_nothing(site, undisturbed, seed):
    """Calls and patience are short, so that some runs give up with 75 and are started again."""
    if seed is None:
        schedule = read_schedule(Path(os.environ["PLAUDIT_SCHEDULE"]), LINES)
    else:
        schedule = scenes(seed, list(LINES), SCHEDULE_S, LINE_SCENES)
    assert site.run_over(f"lines-{seed}", schedule, call_timeout=2.0, patience=3.0) == undisturbed[0]
