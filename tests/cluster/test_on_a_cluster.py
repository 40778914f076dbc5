"""Plaudit on the cluster that KUBECONFIG names, from the first apply until nothing is left; half an hour.

The image plaudit:0.1.0 must be on its nodes, and prom/prometheus there or to be had. One installation for all
tests, which build on each other in their order: a run is under way while pods are killed, a second one waits
for it, then the reward service is rolled, scaled and given a bad image while somebody calls it.
"""

import json
import re

import installation
import pytest
from installation import (
    OURS,
    OVERLAY,
    REWARD,
    RUN,
    SECOND_RUN,
    SECOND_TRAINER,
    TRAINER,
    calls,
    calls_are_well,
    has_data,
    metrics,
    of_job,
    of_service,
    plaudit_tool,
    pods,
    ready,
    ready_now,
    scored,
    steps,
    steps_above,
    until,
)
from manifests import load, named
from test_k8s_queries import dashboards

from trainer.cluster.errors import WorkloadFailed
from trainer.config import load_config
from trainer.ppo.config import PPOConfig

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]

BAD_IMAGE = "plaudit:not-there"
EXPORTED = {
    of_service("policy"): "plaudit_policy_generated_tokens_total",
    of_service("reward"): "plaudit_reward_items_total",
    of_service("reference"): "plaudit_reference_sequences_total",
    of_job(TRAINER): "plaudit_ppo_step",
}


@pytest.fixture(scope="module")
def manifests():
    """What is applied, and taken down at the end whatever has failed."""
    installation.needs_a_cluster()
    assert not installation.namespaces(), (
        "the namespace plaudit is there already; these tests would delete what is in it"
    )
    text = installation.manifests()
    try:
        installation.apply(text)
        yield text
    finally:
        installation.delete(text)


@pytest.fixture(scope="module")
def total(manifests):
    """How many steps the runs were asked for."""
    return load_config(PPOConfig, OVERLAY / "ppo.toml", environ={}).total_steps


def waited(*words):
    done = plaudit_tool("wait", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_models_services_and_trainer_come_up_in_their_order(manifests):
    lines = waited("--until=training", "--timeout=25m").splitlines()
    assert lines[-3:] == ["models: ready", "services: ready", "trainer: ready"]
    for component in ("policy", "reward", "reference", "gateway", "caller", "prometheus"):
        assert ready(of_service(component))


@pytest.mark.parametrize("selector", EXPORTED)
def test_every_pod_tells_prometheus_what_it_does(manifests, selector):
    steps_above(0)
    (pod,) = ready(selector)
    values = [each.value for each in metrics(pod)[EXPORTED[selector]]]
    assert sum(values) > 0


def test_every_query_of_the_dashboards_has_data(manifests):
    """In a Prometheus that scrapes the pods, while a run is under way."""
    (prometheus,) = ready(of_service("prometheus"))
    steps_above(0)
    queries = dict.fromkeys(dashboards.queries())

    def all_answered():
        for query in [each for each in queries if has_data(prometheus, each)]:
            del queries[query]
        return not queries

    until(all_answered, 180, f"data for {queries}")


def test_the_tool_shows_all_of_it(manifests):
    done = plaudit_tool("status")
    assert done.returncode == 0, done.stderr
    for component in ("policy", "reward", "reference", "gateway", "trainer"):
        assert f"plaudit-{component}" in done.stdout


# --- deaths in mid-step


@pytest.mark.parametrize("component", ["policy", "reward", "reference"])
def test_a_service_that_is_killed_in_mid_step_costs_no_step(manifests, component, total):
    (trainer,) = ready(of_job(TRAINER))
    (old,) = ready(of_service(component))
    installation.kill(old)
    until(lambda: old not in pods(of_service(component)), 120, f"{old} is gone")
    (new,) = ready(of_service(component))
    before = len(steps(RUN))
    assert new != old and before < total - 10, "the run was over too soon to show anything"
    steps_above(before)
    assert ready(of_job(TRAINER)) == [trainer]


def test_a_trainer_that_is_stopped_goes_on_where_it_was(manifests):
    (old,) = ready(of_job(TRAINER))
    installation.stop(old)
    done = len(steps(RUN))
    steps_above(done)
    (new,) = ready(of_job(TRAINER))
    assert new != old
    assert f"going on from /runs/{RUN}/checkpoints/step-{done:08}" in installation.log(new)


def test_a_second_trainer_waits_and_says_for_whom(manifests):
    (first,) = ready(of_job(TRAINER))
    done = plaudit_tool("submit", OVERLAY / "ppo.toml", f"--name={SECOND_RUN}")
    assert done.returncode == 0, done.stderr
    (second,) = until(lambda: [*pods(of_job(SECOND_TRAINER))], 120, "a pod of the second trainer")
    said = f"another trainer, {first}_"
    until(lambda: said in installation.log(second), 300, "it says for whom it waits")
    assert steps(SECOND_RUN) == []


def test_both_runs_end_with_every_step_once(manifests, total):
    waited("--until=done", "--timeout=30m")
    assert until(lambda: installation.end_of_job(SECOND_TRAINER), 1800, "the second run's end") == [
        "Complete"
    ]
    disturbed, undisturbed = steps(RUN), steps(SECOND_RUN)
    assert disturbed == undisturbed == list(range(1, total + 1))


# --- the reward service under load


def test_a_rolling_restart_fails_no_call(manifests):
    before = calls_are_well()
    (old,) = ready(of_service("reward"))
    installation.restart()
    until(lambda: old not in pods(of_service("reward")), 180, f"{old} is gone")
    until(lambda: calls()["calls"] > before["calls"] + 100, 120, "more calls")
    assert calls()["failed"] == before["failed"], calls()


def test_new_replicas_take_their_part_within_the_age_of_a_connection(manifests):
    """300 seconds, give or take a tenth, and some for the name to be asked for again."""
    before = calls_are_well()
    installation.scale(3)
    at = {pod: scored(pod) for pod in ready(of_service("reward"), 3)}
    until(lambda: all(scored(pod) >= at[pod] + 20 for pod in at), 400, "calls of all three")
    assert calls()["failed"] == before["failed"], calls()


def test_replicas_that_go_fail_no_call(manifests):
    before = calls_are_well()
    installation.scale(1)
    until(lambda: len(pods(of_service("reward"))) == 1, 180, "one replica is left")
    until(lambda: calls()["calls"] > before["calls"] + 100, 120, "more calls")
    assert calls()["failed"] == before["failed"], calls()


def test_an_image_that_is_not_there_is_named(manifests):
    reward = named(load(manifests), "Deployment", REWARD.partition("/")[2])
    (container,) = reward["spec"]["template"]["spec"]["containers"]
    container["image"] = BAD_IMAGE
    installation.apply(json.dumps(reward))
    done = plaudit_tool("wait", "--timeout=10m")
    installation.apply(manifests)
    assert done.returncode == WorkloadFailed.exit_code, done.stdout + done.stderr
    assert BAD_IMAGE in done.stderr and re.search("ErrImagePull|ImagePullBackOff", done.stderr)
    assert waited("--timeout=10m").splitlines()[-1] == "services: ready"


# --- the manifests


def test_the_namespace_refuses_a_privileged_pod(manifests):
    done = installation.privileged_pod()
    assert done.returncode != 0 and "violates PodSecurity" in done.stderr


def test_applied_again_nothing_changes(manifests):
    before = ready_now(OURS)
    assert installation.differences(manifests) == ""
    installation.apply(manifests)
    assert installation.differences(manifests) == "" and ready_now(OURS) == before


def test_deleted_nothing_is_left(manifests):
    installation.delete(manifests)
    until(lambda: not installation.left_overs(), 300, "nothing is left")
