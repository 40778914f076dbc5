"""`wait`: models, services, trainer in their order; and why not, in the cluster's own words."""

import pytest
from api_server import Refusal
from cluster_objects import (
    IMAGE,
    condition,
    deployment,
    event,
    job,
    pod,
    put_services,
    replica_set,
    terminated,
    waiting,
)

from trainer.cluster import waiting as cluster_waiting

DENIED = 'pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true'


def not_ready(server, component, status, **more):
    """Services of which one has a pod that isn't ready; returns the pod."""
    sets = put_services(server, **{component: {"ready": 0}})
    each = pod(sets[component], "bad", phase="Pending", ready=False, status=status, **more)
    return server.put("pods", each)


def failing(run, *words):
    """What `wait` says of a workload that failed."""
    code, out, err = run("wait", *words)
    assert code == 70, (out, err)
    return err


# --- in their order


def test_services_that_are_ready_are_all_that_is_waited_for(run, server):
    put_services(server)
    assert run("wait") == (0, "services: ready\n", "")


def test_first_the_models_then_the_services_then_the_trainer(run, server, clock):
    models = server.put("jobs", job("plaudit-models", "models", active=1))
    server.put("pods", pod(models))
    sets = put_services(server, policy={"ready": 0})
    training = server.put("jobs", job("plaudit-trainer", "trainer", active=1))
    server.put("pods", pod(training, phase="Pending", ready=False))
    policy = server.objects["deployments", "plaudit-policy"]
    clock.steps += [
        lambda: models["status"].update(conditions=[condition("Complete")]),
        lambda: policy["status"].update(availableReplicas=1) or server.put("pods", pod(sets["policy"])),
        lambda: server.put("pods", pod(training)),
    ]
    code, out, _ = run("wait", "--until", "training")
    assert code == 0
    assert out.splitlines() == [
        "waiting for Job plaudit-models: its pod is running",
        "waiting for Deployment plaudit-policy: 0 of 1 available, 1 of the newest template",
        "waiting for Job plaudit-trainer: its pod is pending",
        "models: ready",
        "services: ready",
        "trainer: ready",
    ]


def test_done_is_when_the_trainer_is(run, server, clock):
    put_services(server)
    training = server.put("jobs", job("plaudit-trainer", "trainer", active=1))
    server.put("pods", pod(training))
    assert run("wait", "--until", "training")[0] == 0
    clock.steps.append(lambda: training["status"].update(conditions=[condition("Complete")]))
    assert run("wait", "--until", "done")[0] == 0


@pytest.mark.parametrize(
    "status",
    [
        {"observedGeneration": 1},
        {"updatedReplicas": 1},
        {"availableReplicas": 1},
        {"replicas": 3},
    ],
)
def test_a_rollout_is_over_when_its_own_replicas_are_and_no_others(run, server, clock, status):
    put_services(server)
    rolling = server.put("deployments", deployment("reward", replicas=2, ready=2))
    was = dict(rolling["status"])
    rolling["status"].update(status)
    clock.steps.append(lambda: rolling["status"].update(was))
    code, out, _ = run("wait")
    assert code == 0 and "waiting for Deployment plaudit-reward" in out
    assert len(clock.slept) == 1


def test_time_that_is_over_says_what_is_missing_and_to_wait_again(run, server, clock):
    put_services(server, reward={"ready": 0})
    code, _, err = run("wait", "--timeout", "3s")
    assert code == 75
    assert "waiting for Deployment plaudit-reward" in err and "not there after 3 s; wait again" in err
    assert clock.passed == 5


def test_nothing_applied(run, server):
    code, _, err = run("wait")
    assert code == 64 and "plaudit-policy" in err and "kubectl apply --server-side" in err


def test_no_trainer_applied(run, server):
    put_services(server)
    code, _, err = run("wait", "--until", "training")
    assert code == 64 and err.startswith("plaudit-trainer: not in the namespace plaudit")


# --- why not


def test_an_image_that_cannot_be_pulled(run, server):
    not_ready(server, "policy", waiting("ImagePullBackOff", "Back-off pulling image: not found"))
    err = failing(run)
    assert err == f"Pod bad: ImagePullBackOff: image {IMAGE}: Back-off pulling image: not found\n"


def test_it_is_given_a_minute(run, server, clock):
    each = not_ready(server, "policy", waiting("ImagePullBackOff"))
    failing(run)
    assert cluster_waiting.GRACE_S <= clock.passed < cluster_waiting.GRACE_S + 5
    clock.steps += [
        lambda: None,
        lambda: each["status"].update(containerStatuses=[]),
        lambda: server.objects["deployments", "plaudit-policy"]["status"].update(availableReplicas=1),
    ]
    assert run("wait")[0] == 0


def test_an_image_that_is_not_on_the_node(run, server, clock):
    not_ready(server, "reward", waiting("ErrImageNeverPull"))
    assert f"ErrImageNeverPull: image {IMAGE}" in failing(run)
    assert clock.passed == 0, "nothing but a person mends it"


def test_a_node_that_has_no_room(run, server):
    full = "0/1 nodes are available: 1 Insufficient memory."
    unscheduled = condition("PodScheduled", False, reason="Unschedulable", message=full)
    not_ready(server, "policy", {"state": {}}, conditions=[unscheduled])
    assert failing(run) == f"Pod bad: FailedScheduling: {full}\n"


@pytest.mark.parametrize("reason", ["TriggeredScaleUp", "Nominated"])
def test_a_node_that_is_coming_is_waited_for(run, server, reason):
    unscheduled = condition("PodScheduled", False, reason="Unschedulable", message="no GPU")
    each = not_ready(server, "policy", {"state": {}}, conditions=[unscheduled])
    server.put("events", event(each, reason, "a node is made", kind="Normal"))
    code, _, err = run("wait", "--timeout", "2m")
    assert code == 75 and "FailedScheduling" not in err


def test_a_denial_of_pod_security_is_on_the_replica_set(run, server, clock):
    sets = put_services(server, reference={"ready": 0})
    failure = condition("ReplicaFailure", reason="FailedCreate", message=DENIED)
    sets["reference"]["status"]["conditions"] = [failure]
    assert failing(run) == f"ReplicaSet plaudit-reference-2: FailedCreate: {DENIED}\n"
    assert clock.passed == 0


def test_other_pods_that_cannot_be_created_are_given_a_minute(run, server, clock):
    sets = put_services(server, reference={"ready": 0})
    missing = "error looking up service account plaudit/plaudit-reference: not found"
    sets["reference"]["status"]["conditions"] = [condition("ReplicaFailure", message=missing)]
    assert missing in failing(run)
    assert clock.passed >= cluster_waiting.GRACE_S


def test_memory_above_the_limit_is_told_with_the_limit(run, server):
    status = waiting("CrashLoopBackOff", "back-off 10s", {"exitCode": 137, "reason": "OOMKilled"})
    not_ready(server, "policy", status)
    assert failing(run) == "Pod bad: OOMKilled: plaudit took more memory than its limit, 2304Mi\n"


def test_a_container_that_ends_again_and_again_is_told_with_its_last_words(run, server, clock):
    last = {"exitCode": 64, "reason": "Error", "message": "the model can't be loaded:\n/models/sft"}
    not_ready(server, "policy", waiting("CrashLoopBackOff", "back-off 20s", last))
    said = "plaudit ended with exit code 64: the model can't be loaded: /models/sft"
    assert failing(run) == f"Pod bad: CrashLoopBackOff: {said}\n"
    assert clock.passed == 0


@pytest.mark.parametrize(
    "message", ['secret "plaudit-token" not found', 'configmap "plaudit-environment" not found']
)
def test_a_secret_or_config_map_that_is_missing(run, server, message):
    not_ready(server, "policy", waiting("CreateContainerConfigError", message))
    assert failing(run) == f"Pod bad: CreateContainerConfigError: {message}\n"


def test_an_init_container_that_fails(run, server):
    each = not_ready(server, "policy", waiting("PodInitializing"))
    broken = dict(
        each["status"]["containerStatuses"][0], name="wait-for-models", **waiting("ErrImageNeverPull")
    )
    each["status"]["initContainerStatuses"] = [broken]
    assert "ErrImageNeverPull" in failing(run)


def test_a_volume_that_cannot_be_mounted_is_an_event(run, server):
    each = not_ready(server, "policy", waiting("ContainerCreating"))
    server.put("events", event(each, "Scheduled", "to node-1", kind="Normal", at="2026-01-01T00:00:01Z"))
    server.put("events", event(each, "FailedMount", 'persistentvolumeclaim "plaudit-models" not found'))
    assert failing(run) == 'Pod bad: FailedMount: persistentvolumeclaim "plaudit-models" not found\n'


def test_a_warning_that_has_passed_is_none(run, server):
    each = not_ready(server, "policy", waiting("ContainerCreating"))
    server.put("events", event(each, "FailedMount", "not yet", at="2026-01-01T00:00:01Z"))
    series = event(each, "Pulling", "image", kind="Normal", at=None)
    server.put("events", series | {"series": {"lastObservedTime": "2026-01-01T00:00:09.000000Z"}})
    code, _, err = run("wait", "--timeout", "2m")
    assert code == 75 and "FailedMount" not in err


def test_a_model_that_takes_minutes_to_load_is_waited_for(run, server):
    """Until it is loaded its startup probe fails, which is a warning."""
    sets = put_services(server, policy={"ready": 0})
    each = server.put("pods", pod(sets["policy"], "loading", ready=False))
    server.put("events", event(each, "Unhealthy", "Startup probe failed: NOT_SERVING"))
    code, out, err = run("wait", "--timeout", "2m")
    assert code == 75 and "Unhealthy" not in out + err


def test_pods_that_were_evicted_or_are_on_their_way_out_do_not_count(run, server):
    sets = put_services(server, policy={"ready": 0})
    evicted = server.put("pods", pod(sets["policy"], "evicted", phase="Failed", ready=False))
    server.put("events", event(evicted, "Evicted", "The node was low on resource: memory."))
    leaving = pod(sets["policy"], "leaving", phase="Pending", ready=False, status=waiting("InvalidImageName"))
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z"
    server.put("pods", leaving)
    assert run("wait", "--timeout", "2m")[0] == 75


def test_a_pull_that_begins_and_waits_in_turn_is_one_trouble(run, server, clock):
    each = not_ready(server, "policy", waiting("ImagePullBackOff"))

    def turn(reason):
        return lambda: each["status"]["containerStatuses"][0].update(waiting(reason))

    clock.steps += [turn("ErrImagePull"), turn("ImagePullBackOff")] * 10
    failing(run)
    assert clock.passed < cluster_waiting.GRACE_S + 10


def test_a_rollout_that_takes_too_long(run, server, clock):
    late = condition(
        "Progressing", False, reason="ProgressDeadlineExceeded", message="has timed out progressing"
    )
    put_services(server, gateway={"ready": 0, "conditions": [late]})
    assert failing(run).endswith("plaudit-gateway: ProgressDeadlineExceeded: has timed out progressing\n")
    assert clock.passed == 0


def test_pods_of_a_former_template_do_not_count(run, server):
    sets = put_services(server, policy={"ready": 0})
    former = server.put("replicasets", replica_set(server.objects["deployments", "plaudit-policy"], "1"))
    old = pod(former, "old", phase="Pending", ready=False, status=waiting("ErrImageNeverPull"))
    server.put("pods", old)
    server.put("pods", pod(sets["policy"], "new", ready=False))
    code, _, err = run("wait", "--timeout", "2m")
    assert code == 75 and "ErrImageNeverPull" not in err


@pytest.mark.parametrize(("code", "reason"), [(64, "PodFailurePolicy"), (70, "BackoffLimitExceeded")])
def test_a_job_that_failed_is_told_with_its_exit_code(run, server, code, reason):
    put_services(server)
    failed = condition("Failed", reason=reason, message="the Job has failed")
    training = server.put("jobs", job("plaudit-trainer", "trainer", failed))
    ended = terminated(code, message="run.name: is required")
    server.put("pods", pod(training, phase="Failed", ready=False, status=ended))
    said = f"plaudit ended with exit code {code}: run.name: is required"
    assert failing(run, "--until", "done") == f"Job plaudit-trainer: {reason}: the Job has failed; {said}\n"


def test_a_job_whose_pods_are_gone_is_told_as_far_as_is_known(run, server):
    put_services(server)
    server.put("jobs", job("plaudit-models", "models", condition("Failed", reason="DeadlineExceeded")))
    assert failing(run) == "Job plaudit-models: DeadlineExceeded: \n"


def test_a_job_that_tries_again_is_waited_for_and_says_why(run, server):
    put_services(server)
    training = server.put("jobs", job("plaudit-trainer", "trainer", failed=1))
    server.put("pods", pod(training, "a", phase="Failed", ready=False, status=terminated(137, "OOMKilled")))
    server.put("pods", pod(training, "b", phase="Pending", ready=False, status=waiting("ContainerCreating")))
    code, out, _ = run("wait", "--until", "training", "--timeout", "2m")
    assert code == 75
    assert "its pod is pending; try 2, since plaudit took more memory than its limit, 2304Mi" in out


def test_a_job_whose_pod_is_denied_has_only_an_event(run, server, clock):
    put_services(server)
    models = server.put("jobs", job("plaudit-models", "models"))
    server.put("events", event(models, "FailedCreate", f"Error creating: {DENIED}"))
    assert failing(run) == f"Job plaudit-models: FailedCreate: Error creating: {DENIED}\n"
    assert clock.passed == 0


def test_an_evicted_pod_has_its_reason_in_its_status(run, server):
    put_services(server)
    models = server.put("jobs", job("plaudit-models", "models", condition("Failed", message="backoff limit")))
    gone = pod(models, phase="Failed", ready=False)
    gone["status"].update(containerStatuses=[], message="The node was low on resource: memory.")
    server.put("pods", gone)
    assert "backoff limit; The node was low on resource: memory." in failing(run)


def test_services_may_be_in_trouble_while_they_wait_for_their_models(run, server, clock):
    models = server.put("jobs", job("plaudit-models", "models", active=1))
    server.put("pods", pod(models))
    each = not_ready(server, "policy", waiting("ContainerCreating"))
    server.put("events", event(each, "FailedAttachVolume", "the volume is used by another node"))
    code, out, _ = run("wait", "--timeout", "2m")
    assert code == 75 and "FailedAttachVolume" not in out


def test_but_not_by_what_only_a_person_mends(run, server, clock):
    models = server.put("jobs", job("plaudit-models", "models", active=1))
    server.put("pods", pod(models))
    not_ready(server, "policy", waiting("ErrImageNeverPull"))
    assert "ErrImageNeverPull" in failing(run)
    assert clock.passed == 0


def test_all_that_is_wrong_is_told_and_once(run, server):
    not_ready(server, "policy", waiting("ErrImageNeverPull"))
    each = deployment("reward", ready=0)
    server.objects["deployments", "plaudit-reward"]["status"] = each["status"]
    server.put(
        "pods",
        pod(
            server.objects["replicasets", "plaudit-reward-2"],
            "too",
            ready=False,
            status=waiting("InvalidImageName"),
        ),
    )
    err = failing(run)
    assert [line.split(":")[0] for line in err.splitlines()] == ["Pod bad", "Pod too"]


# --- the API server


def test_an_api_server_that_is_away(run, server):
    server.fail("list", "pods", Refusal(503, "etcd is away"), times=100)
    code, _, err = run("wait")
    assert code == 69 and "etcd is away" in err


def test_an_account_that_may_not(run, server):
    server.rules = []
    code, _, err = run("wait")
    assert code == 77 and "cannot list" in err and "--role=plaudit-operator" in err
