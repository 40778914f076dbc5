"""`submit` and `resume`: Jobs like the one of the manifests, checked before the cluster is asked anything."""

import json
import tomllib
from pathlib import Path

import pytest
import yaml
from api_server import NAMESPACE, Refusal, job_made as as_the_cluster_keeps_it
from cluster_objects import IMAGE, condition, labels, pod, terminated
from test_k8s_renders import NEWEST, validated

from trainer.config import load_config
from trainer.ppo.config import PPOConfig

ROOT = Path(__file__).parents[3]
TOML = ROOT / "k8s/base/ppo.toml"


@pytest.fixture
def base(server):
    """The Job of k8s/base, as the cluster keeps it after it has run."""
    return put_base(server)


def put_base(server, *conditions):
    (written,) = (
        each
        for each in yaml.safe_load_all((ROOT / "k8s/base/trainer.yaml").read_text(encoding="utf-8"))
        if each["kind"] == "Job"
    )
    written["metadata"] |= {"namespace": NAMESPACE, "labels": labels("trainer")}
    written["spec"]["template"]["metadata"]["labels"] = labels("trainer")
    kept = as_the_cluster_keeps_it(written, None, 100)
    kept["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "{…}"}
    kept["spec"] |= {"completionMode": "NonIndexed", "suspend": False, "parallelism": 1, "completions": 1}
    kept["status"] = {"conditions": list(conditions)}
    return server.put("jobs", kept)


@pytest.fixture
def toml(tmp_path):
    """toml(a.b=c, …) → a file like that of the manifests, with lines of [run] exchanged."""

    def write(text):
        path = tmp_path / "run.toml"
        path.write_text(text)
        return path

    return write


def container(made):
    (found,) = made["spec"]["template"]["spec"]["containers"]
    return found


# --- before the cluster is asked


def test_a_wrong_configuration_is_refused_with_every_problem(run, server, toml):
    code, _, err = run("submit", toml('[run]\nname = "a"\nsede = 1\n[ppo]\nbatch_size = 0\n'))
    assert code == 64
    assert "run.sede: unknown key; did you mean seed?" in err and "ppo.batch_size" in err
    assert "model: is required" in err
    assert server.asked == []


@pytest.mark.parametrize("text", ["[run", "\udce4"])
def test_what_is_no_toml_is_refused(run, server, tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    code, _, err = run("submit", path)
    assert code == 64 and "is not TOML" in err and server.asked == []


def test_a_file_that_is_not_there_is_refused(run, server):
    code, _, err = run("submit", "no.toml")
    assert code == 64 and "can't be read" in err and server.asked == []


@pytest.mark.parametrize("name", ["Nightly", "a_b", "v1.2", "a" * 52, "-a", "a-"])
def test_a_name_that_no_job_can_have_is_refused(run, server, name):
    code, _, err = run("submit", TOML, f"--name={name}")
    assert code == 64 and "run.name" in err and server.asked == []


def test_this_machines_environment_is_not_the_pods(run, server, base, monkeypatch):
    monkeypatch.setenv("PLAUDIT_RUN__SEED", "no number")
    assert run("submit", TOML)[0] == 0


# --- what is made


def test_a_submitted_run_is_a_job_like_the_manifests_with_its_own_configuration(run, server, base):
    code, out, _ = run("submit", TOML, "--name", "nightly")
    assert (code, out) == (0, "the Job plaudit-run-nightly is made\n")
    made = server.objects["configmaps", "plaudit-run-nightly"]
    assert made["data"] == {"ppo.toml": TOML.read_text(encoding="utf-8")}
    job = server.objects["jobs", "plaudit-run-nightly"]
    volumes = {each["name"]: each for each in job["spec"]["template"]["spec"]["volumes"]}
    assert volumes["config"] == {"name": "config", "configMap": {"name": "plaudit-run-nightly"}}
    assert container(job)["args"] == [*container(base)["args"], '--set=run.name="nightly"']
    assert container(base)["args"].count("--resume") == 1, "the manifests' Job is as it was"
    rest = {key: value for key, value in job["spec"].items() if key not in ("template", "selector")}
    assert rest == {key: base["spec"][key] for key in rest} and rest["podFailurePolicy"]


def test_what_is_made_is_labelled_as_ours_and_says_by_whom(run, server, base):
    run("submit", TOML, "--name", "nightly")
    for key in (("configmaps", "plaudit-run-nightly"), ("jobs", "plaudit-run-nightly")):
        made = server.objects[key]["metadata"]
        assert made["labels"] == labels("trainer") | {"app.kubernetes.io/managed-by": "plaudit"}
        assert "annotations" not in made
    pod_labels = server.objects["jobs", "plaudit-run-nightly"]["spec"]["template"]["metadata"]["labels"]
    assert labels("trainer").items() <= pod_labels.items(), "its Service and its NetworkPolicy find it"


def test_what_is_made_is_valid_to_the_letter(run, server, base):
    run("submit", TOML, "--name", "nightly")
    for resource, kind in (("configmaps", "ConfigMap"), ("jobs", "Job")):
        text = json.dumps(server.objects[resource, "plaudit-run-nightly"])
        assert json.loads(text)["kind"] == kind
        validated(text, NEWEST)


@pytest.mark.parametrize("name", ["nightly", "2024", "1e5", "true"])
def test_the_trainer_reads_the_name_as_it_was_given(run, server, base, name):
    """A name that TOML would take for a number, too."""
    run("submit", TOML, "--name", name)
    args = container(server.objects["jobs", f"plaudit-run-{name}"])["args"]
    overrides = [each.removeprefix("--set=") for each in args if each.startswith("--set=")]
    assert load_config(PPOConfig, TOML, overrides, environ={}).run.name == name


def test_without_a_name_it_is_the_files(run, server, base):
    run("submit", TOML)
    name = tomllib.loads(TOML.read_text(encoding="utf-8"))["run"]["name"]
    assert ("jobs", f"plaudit-run-{name}") in server.objects


def test_another_image(run, server, base):
    run("submit", TOML, "--image", IMAGE)
    assert container(server.objects["jobs", "plaudit-run-ppo"])["image"] == IMAGE
    assert container(base)["image"] != IMAGE


def test_an_answer_that_was_lost_makes_nothing_twice(run, server, base):
    server.fail("patch", "jobs", Refusal(500, "etcdserver: request timed out"))
    assert run("submit", TOML)[0] == 0
    assert len(server.objects) == 3


# --- what can't be made


def test_without_the_manifests_there_is_nothing_to_copy(run, server):
    code, _, err = run("submit", TOML)
    assert code == 64 and "plaudit-trainer" in err and "apply the manifests" in err
    assert {asked.verb for asked in server.asked} == {"get"}


def test_a_run_of_that_name_is_left_alone(run, server, base):
    run("submit", TOML, "--name", "nightly")
    before = dict(server.objects)
    code, _, err = run("submit", TOML, "--name", "nightly")
    assert code == 64 and "plaudit-run-nightly is there already" in err
    assert server.objects == before


def test_a_configuration_that_somebody_has_edited_is_left_alone(run, server, base):
    server.put("configmaps", {"metadata": {"name": "plaudit-run-ppo"}})
    server.managers["configmaps", "plaudit-run-ppo"] = [("kubectl-edit", ".data.ppo.toml")]
    code, _, err = run("submit", TOML)
    assert code == 64 and "kubectl-edit (.data.ppo.toml)" in err
    assert ("jobs", "plaudit-run-ppo") not in server.objects


def test_a_job_of_another_shape_is_not_copied(run, server, base):
    base["spec"]["template"]["spec"]["volumes"] = []
    code, _, err = run("submit", TOML)
    assert code == 64 and "no volume config" in err


# --- resume


def ended_run(server, run, *, code=70):
    """A submitted run whose pod has ended with `code`."""
    put_base(server)
    assert run("submit", TOML, "--name", "nightly")[0] == 0
    job = server.objects["jobs", "plaudit-run-nightly"]
    job["status"] = {"conditions": [condition("Failed", reason="BackoffLimitExceeded")]}
    return job, server.put("pods", pod(job, "old", phase="Failed", ready=False, status=terminated(code)))


def test_a_run_that_failed_is_deleted_with_its_pods_and_made_again(run, server, clock):
    job, old = ended_run(server, run)
    former = json.loads(json.dumps(job))
    clock.steps += [
        lambda: server.remove("pods", old["metadata"]["name"]),
        lambda: server.remove("jobs", "plaudit-run-nightly"),
    ]
    code, out, _ = run("resume", "nightly")
    assert code == 0 and "plaudit-run-nightly is made anew" in out
    made = server.objects["jobs", "plaudit-run-nightly"]
    assert made["metadata"]["uid"] != former["metadata"]["uid"] and "status" not in made
    assert made["metadata"]["labels"] == former["metadata"]["labels"]
    assert container(made) == container(former) and "--resume" in container(made)["args"]
    assert list(clock.steps) == []


def test_it_is_not_made_while_a_pod_may_still_write(run, server, clock):
    """A Job that is gone before its pods."""
    _, old = ended_run(server, run)
    clock.steps += [
        lambda: server.remove("jobs", "plaudit-run-nightly"),
        lambda: None,
        lambda: server.remove("pods", old["metadata"]["name"]),
    ]
    assert run("resume", "nightly")[0] == 0
    asked = [each for each in server.asked if each.resource in ("pods", "jobs")]
    assert asked[-1].verb == "create" and asked[-2].verb == "patch" and list(clock.steps) == []


def test_pods_that_stay_are_named(run, server):
    ended_run(server, run)
    code, _, err = run("resume", "nightly", "--timeout", "20s")
    assert code == 75 and "old" in err and "submit the run again" in err


def test_the_manifests_own_run_is_resumed_without_a_name(run, server, clock):
    put_base(server, condition("Complete"))
    clock.steps.append(lambda: server.remove("jobs", "plaudit-trainer"))
    assert run("resume")[0] == 0
    made = server.objects["jobs", "plaudit-trainer"]["metadata"]
    assert made["labels"]["app.kubernetes.io/managed-by"] == "kustomize"
    assert "annotations" not in made


def test_a_run_that_works_is_left_alone(run, server):
    put_base(server)
    code, _, err = run("resume")
    assert code == 64 and "has not ended" in err
    assert {asked.verb for asked in server.asked} == {"get"}


def test_a_run_that_was_never_submitted(run, server):
    code, _, err = run("resume", "nightly")
    assert code == 64 and "no Job plaudit-run-nightly" in err
