"""Whatever is killed or cut, whenever: a run that goes on has, bit for bit, the weights of one left alone.

PLAUDIT_KILLS=15 makes it 30 runs that are killed at random; without it there are two. PLAUDIT_SCHEDULES=20
makes it 20 runs over lines that fail instead of one, and PLAUDIT_SCHEDULE=FILE one over those of a file.
"""

import os
import random
import time
from pathlib import Path

import pytest
from chaos import read_schedule
from fault_schedule import LINE_SCENES, scenes
from killed_runs import LINES, POLICIES, TRAINER, Death, Site

RUNS = int(os.environ.get("PLAUDIT_KILLS", "1"))
SCHEDULES = (
    [None] if "PLAUDIT_SCHEDULE" in os.environ else range(int(os.environ.get("PLAUDIT_SCHEDULES", "1")))
)
SCHEDULE_S = 60.0
"""Seconds that a drawn schedule lasts; a run ends sooner, and with it the schedule."""


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


@pytest.mark.parametrize("seed", SCHEDULES)
def test_failing_lines_change_nothing(site, undisturbed, seed):
    """Calls and patience are short, so that some runs give up with 75 and are started again."""
    if seed is None:
        schedule = read_schedule(Path(os.environ["PLAUDIT_SCHEDULE"]), LINES)
    else:
        schedule = scenes(seed, list(LINES), SCHEDULE_S, LINE_SCENES)
    assert site.run_over(f"lines-{seed}", schedule, call_timeout=2.0, patience=3.0) == undisturbed[0]
