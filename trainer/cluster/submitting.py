"""`submit` and `resume`: Jobs made from the trainer's Job that the manifests have put there."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.cluster.calls import MANAGER, Cluster, Object
from trainer.cluster.errors import Misused, TimedOut
from trainer.cluster.waiting import TRAINER
from trainer.cluster.workloads import condition
from trainer.config import load_config
from trainer.errors import ConfigError
from trainer.ppo.config import PPOConfig

PREFIX = "plaudit-run-"
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,49}[a-z0-9])?")
"""What is left of the 63 characters that a Job's name may have."""
VOLUME, KEY = "config", "ppo.toml"
MANAGED_BY = "app.kubernetes.io/managed-by"
OF_ONE_JOB = ("batch.kubernetes.io/", "controller-uid", "job-name")
"""Labels that the cluster gives to the pods of one Job."""


def checked(path: Path, name: str | None) -> tuple[str, str]:
    """The run's name, and the text of its configuration. Raises ConfigError with every problem."""
    config = load_config(PPOConfig, path, () if name is None else [_name_override(name)], environ={})
    if not NAME.fullmatch(config.run.name):
        raise ConfigError.at(
            "run.name", f"{config.run.name} can't name a Job; give --name, of a-z, 0-9 and -, at most 51"
        )
    return config.run.name, path.read_text(encoding="utf-8")


def job_name(run: str) -> str:
    """Of a submitted run; of the manifests' own where `run` is empty."""
    return PREFIX + run if run else TRAINER


def submit(cluster: Cluster, run: str, text: str, image: str | None) -> str:
    """Creates the run's ConfigMap and its Job, and returns the name of both. Raises ClusterError."""
    name = job_name(run)
    base = cluster.get("Job", TRAINER)
    if base is None:
        raise Misused(
            f"the Job {TRAINER}, whose pod this run would copy, is not in the namespace {cluster.namespace}; "
            "first apply the manifests"
        )
    if cluster.get("Job", name) is not None:
        raise Misused(f"the Job {name} is there already; resume it, give another --name, or delete it first")
    job = _copy(base, name)
    pod = job["spec"]["template"]["spec"]
    (container,) = (each for each in pod["containers"] if each["name"] == "plaudit")
    container["args"] = [*container.get("args", ()), "--set=" + _name_override(run)]
    _read_config_from(pod, name)
    if image is not None:
        container["image"] = image
    labels = job["metadata"]["labels"] | {MANAGED_BY: MANAGER}
    job["metadata"]["labels"] = labels
    cluster.apply(_object("v1", "ConfigMap", name, cluster.namespace, labels) | {"data": {KEY: text}})
    cluster.apply(job)
    return name


def resume(cluster: Cluster, name: str, timeout: float, tell: Callable[[str], None]) -> None:
    """Starts the Job `name` again, which goes on from its newest checkpoint.

    The ended Job is deleted with its pods, and made again when they are gone. Raises ClusterError.
    """
    job = cluster.get("Job", name)
    if job is None:
        raise Misused(f"there is no Job {name} in the namespace {cluster.namespace}; submit it")
    if not (condition(job, "Complete") or condition(job, "Failed")):
        raise Misused(f"the Job {name} has not ended; plaudit run stop ends it")
    tell(f"deleting the Job {name} and its pods")
    cluster.delete("Job", name, job["metadata"]["uid"])
    _wait_until_gone(cluster, job, timeout)
    cluster.apply(_copy(job, name))


def _wait_until_gone(cluster: Cluster, job: Object, timeout: float) -> None:
    end = cluster.clock.monotonic() + timeout
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    for pods in cluster.follow("Pod", labels=f"batch.kubernetes.io/controller-uid={uid}"):
        if not pods and cluster.get("Job", name) is None:
            return
        if cluster.clock.monotonic() >= end:
            left = ", ".join(pod["metadata"]["name"] for pod in pods) or "the Job itself"
            raise TimedOut(f"not gone after {timeout:.0f} s: {left}; once it is, submit the run again")


def _copy(job: Object, name: str) -> Object:
    """A Job as somebody would have written it: without what the cluster has added to it."""
    template = job["spec"]["template"]
    pod_labels = template["metadata"].get("labels", {})
    kept = {key: value for key, value in pod_labels.items() if not key.startswith(OF_ONE_JOB)}
    metadata = {"labels": kept, "annotations": template["metadata"].get("annotations", {})}
    spec = {key: value for key, value in job["spec"].items() if key not in ("selector", "template")}
    spec["template"] = {"metadata": metadata, "spec": template["spec"]}
    labels = job["metadata"].get("labels", {})
    return _object("batch/v1", "Job", name, job["metadata"]["namespace"], labels) | {
        "spec": copy.deepcopy(spec)
    }


def _object(version: str, kind: str, name: str, namespace: str, labels: dict[str, Any]) -> Object:
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _read_config_from(pod: Object, name: str) -> None:
    for volume in pod["volumes"]:
        if volume["name"] == VOLUME:
            volume["configMap"]["name"] = name
            return
    raise Misused(f"the pod of the Job {TRAINER} has no volume {VOLUME}, by which a run's {KEY} is mounted")


def _name_override(name: str) -> str:
    """As text of TOML, which 2024 or 1e5 wouldn't be by themselves."""
    return f"run.name={json.dumps(name)}"
