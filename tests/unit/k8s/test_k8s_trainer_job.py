"""The trainer's Job and the trainer agree: on exit codes, and on one command for every start."""

import copy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from manifests import (
    COMPONENT,
    K8S,
    OTHER_TRAINERS,
    ROOT,
    command,
    named,
    objects,
    of_kind,
    rendered,
    templates,
)

from lm.roots import Roots
from trainer.config import RunOptions, load_config
from trainer.errors import ConfigError, DataError, ServiceUnreachable, Stopped, TrainerError
from trainer.loop import open_run
from trainer.ppo.config import PPOConfig

SIGTERM = 128 + 15
JOBS = [("cpu", "plaudit-trainer"), ("local", "plaudit-trainer"), ("local", "plaudit-models")]


def rules(overlay, name):
    spec = named(objects(overlay), "Job", name)["spec"]
    return spec["podFailurePolicy"]["rules"]


def codes(overlay, name, action):
    found = [rule for rule in rules(overlay, name) if rule["action"] == action and "onExitCodes" in rule]
    return {code for rule in found for code in rule["onExitCodes"]["values"]}


@pytest.mark.parametrize(("overlay", "name"), JOBS)
def test_a_wrong_configuration_ends_the_job(overlay, name):
    assert codes(overlay, name, "FailJob") == {ConfigError.exit_code} == {DataError.exit_code}


@pytest.mark.parametrize(("overlay", "name"), JOBS)
def test_being_stopped_costs_no_try(overlay, name):
    stopped = {Stopped.exit_code} if name == "plaudit-trainer" else {Stopped.exit_code, SIGTERM}
    assert codes(overlay, name, "Ignore") == stopped
    assert rules(overlay, name)[0] == {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }


@pytest.mark.parametrize(("overlay", "name"), JOBS)
def test_other_failures_cost_one_of_several_tries(overlay, name):
    named_codes = codes(overlay, name, "Ignore") | codes(overlay, name, "FailJob")
    assert not named_codes & {0, TrainerError.exit_code, ServiceUnreachable.exit_code}
    spec = named(objects(overlay), "Job", name)["spec"]
    assert 1 < spec["backoffLimit"] < 10
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize(("overlay", "name"), JOBS)
def test_two_pods_never_share_a_checkpoint(overlay, name):
    spec = named(objects(overlay), "Job", name)["spec"]
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec.get("parallelism", 1) == spec.get("completions", 1) == 1


@pytest.mark.parametrize(("overlay", "name"), JOBS)
def test_rules_name_the_container_that_is_there(overlay, name):
    (container,) = named(objects(overlay), "Job", name)["spec"]["template"]["spec"]["containers"]
    for rule in rules(overlay, name):
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == container["name"]


@pytest.mark.parametrize("path", ["base/ppo.toml", "overlays/local/ppo.toml"])
def test_the_command_that_resumes_starts_a_run_as_well(path, tmp_path):
    """A Job has one command for its first pod and for all that follow."""
    config = load_config(PPOConfig, K8S / path, [f"run.directory={tmp_path}"], environ={})
    (container,) = named(objects("cpu"), "Job", "plaudit-trainer")["spec"]["template"]["spec"]["containers"]
    assert "--resume" in command(container)
    assert open_run(config, config.run, RunOptions(resume=True)).checkpoint is None


def test_production_confines_a_run_to_its_volumes():
    """The roots hold what its own configuration names, and are what the pod mounts beside secrets."""
    found = objects("production")
    keys = [each["data"] for each in of_kind(found, "ConfigMap") if "PLAUDIT_ROOTS" in each["data"]]
    (text,) = (each["PLAUDIT_ROOTS"] for each in keys)
    roots = Roots.parse(text)
    config = load_config(PPOConfig, K8S / "base/ppo.toml", environ={}, roots=roots)
    assert roots is not None and roots.misfit(config.critic.path) is None
    with pytest.raises(ConfigError, match=r"data\.prompts: '/token/token' leads to no place below"):
        load_config(PPOConfig, K8S / "base/ppo.toml", ["data.prompts=/token/token"], {}, roots)
    (container,) = named_pod(found, "trainer")["containers"]
    mounts = {each["mountPath"] for each in container["volumeMounts"]}
    assert mounts - set(text.split(":")) == {"/tmp", "/config", "/tls", "/token", "/tokens"}


@pytest.mark.parametrize("path", ["base/ppo.toml", "overlays/local/ppo.toml"])
def test_services_may_take_as_long_to_come_as_their_pods_may(path):
    services = tomllib.loads((K8S / path).read_text(encoding="utf-8"))["services"]
    deployment = named(objects("cpu"), "Deployment", "plaudit-policy")["spec"]
    assert services["connect_timeout"] >= deployment["progressDeadlineSeconds"]
    assert services["patience"] >= 300, "a node that goes away is noticed after five minutes"


def test_a_set_of_ranks_restarts_as_one_and_not_for_a_wrong_configuration():
    (jobset,) = of_kind(objects("base+jobset"), "JobSet")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    assert spec["backoffLimit"] == 0 and jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert spec["podFailurePolicy"]["rules"] == rules("cpu", "plaudit-trainer"), "a drain costs no restart"
    (first,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (first["action"], first["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    environment = {
        each["name"]: each.get("value") for each in spec["template"]["spec"]["containers"][0]["env"]
    }
    assert int(environment["WORLD_SIZE"]) == spec["parallelism"] == spec["completions"]
    host, _, domain = environment["MASTER_ADDR"].partition(".")
    assert host == f"{jobset['metadata']['name']}-{replicated['name']}-0-0"
    assert domain == jobset["spec"]["network"]["subdomain"]


@pytest.mark.parametrize("scene", ["base+jobset", "base+trainjob"])
def test_another_kind_of_trainer_replaces_the_job_and_takes_no_name_of_a_service(scene):
    found = objects(scene)
    assert not of_kind(found, "Job")
    services = {each["metadata"]["name"] for each in of_kind(found, "Service")}
    for each in of_kind(found, "JobSet"):  # each makes a Service of its own
        assert each["spec"]["network"]["subdomain"] not in services
    for each in of_kind(found, "TrainJob"):
        assert each["metadata"]["name"] not in services


@pytest.mark.parametrize("kind", OTHER_TRAINERS)
def test_another_kind_of_trainer_has_all_that_components_make_of_the_job(kind):
    changes = ("tls", "tokens", "oci-models", "gpu")
    job, other = (
        named_pod(rendered("base", components), "trainer") for components in (changes, (*changes, kind))
    )
    (of_job,), (of_other,) = job.pop("containers"), other.pop("containers")
    assert by_name(other.pop("volumes")) == by_name(job.pop("volumes"))
    assert other == job
    assert by_name(of_other.pop("volumeMounts")) == by_name(of_job.pop("volumeMounts"))
    own = {"name", "command", "args", "env", "ports"}
    assert drop(of_other, own) == drop(of_job, own)
    for key in ("env", "ports"):
        assert all(each in of_other[key] for each in of_job[key])


def test_a_train_job_runs_what_the_job_runs():
    changes = ("tls", "tokens", "gpu")
    (container,) = named_pod(rendered("base", changes), "trainer")["containers"]
    (trained,) = of_kind(rendered("base", (*changes, "trainjob")), "TrainJob")
    torchrun = trained["spec"]["trainer"]
    assert torchrun["args"] == container["args"]
    assert torchrun["command"][-3:] == container["command"][-3:]


def named_pod(found, component):
    (pod,) = (pod for _, pod in templates(found) if pod["metadata"]["labels"][COMPONENT] == component)
    return copy.deepcopy(pod["spec"])


def by_name(found):
    return sorted(found, key=lambda each: each["name"])


def drop(table, keys):
    return {key: value for key, value in table.items() if key not in keys}


def test_its_container_shows_the_exit_code_of_the_trainer():
    """No shell between, which would swallow SIGTERM: the program itself is the command."""
    (container,) = named(objects("cpu"), "Job", "plaudit-trainer")["spec"]["template"]["spec"]["containers"]
    assert container["command"][:3] == ["python", "-m", "trainer"]
    done = subprocess.run(
        [sys.executable, *container["command"][1:4], "/no/such/ppo.toml", *container["args"]],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == ConfigError.exit_code, done.stderr
    assert Path(container["command"][-1]).name in done.stderr
