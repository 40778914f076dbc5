"""The tests in tests/cluster, without a cluster: what they name is there, and what they run can be parsed."""

import json
import re
import tomllib

import api_server
import installation
import make_tiny_models
import pytest
import test_on_a_cluster
import yaml
from kubernetes_tools import run
from manifests import (
    COMPONENT,
    K8S,
    ROOT,
    command,
    load,
    matches,
    memory,
    named,
    objects,
    of_kind,
    option,
    ports,
    processors,
    reference,
    templates,
)
from test_k8s_renders import NEWEST, OLDEST, validated

from trainer.cluster import submitting
from trainer.cluster.api import connect
from trainer.cluster.calls import Cluster
from trainer.config import load_config
from trainer.data import read_prompts
from trainer.ppo.config import PPOConfig

PAGES = "".join((ROOT / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("metrics", "http"))
LOCAL = ("policy", "reward", "reference", "gateway")


@pytest.fixture(scope="module")
def found():
    return load(installation.manifests())


@pytest.fixture(scope="module")
def config():
    return load_config(PPOConfig, installation.OVERLAY / "ppo.toml", environ={})


def template(found, kind, name):
    return named(found, kind, name)["spec"]["template"]


# --- what is applied


PROMETHEUS = {
    f"{kind} plaudit-prometheus" for kind in ("Deployment", "ServiceAccount", "Role", "RoleBinding")
}


def test_it_is_the_local_overlay_a_caller_and_a_prometheus(found):
    ours = {reference(each) for each in found if each["kind"] != "ConfigMap"}
    theirs = {reference(each) for each in objects("local") if each["kind"] != "ConfigMap"}
    assert ours - theirs == {"Deployment plaudit-caller", *PROMETHEUS} and theirs <= ours


def test_services_and_trainer_differ_in_what_they_ask_for_only(found):
    for kind, name in [*(("Deployment", f"plaudit-{each}") for each in LOCAL), ("Job", "plaudit-trainer")]:
        ours, theirs = (template(each, kind, name)["spec"] for each in (found, objects("local")))
        assert without_sizes(ours) == without_sizes(theirs), name


def without_sizes(spec):
    """A pod without resources and hashes."""
    text = json.dumps(spec | {"containers": [each | {"resources": {}} for each in spec["containers"]]})
    for volume in spec["volumes"]:
        text = text.replace(volume.get("configMap", {}).get("name", "plaudit-ppo"), "plaudit-ppo")
    return text


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_it_is_valid(found, version):
    for each in found:
        validated(json.dumps(each), version)


@pytest.mark.parametrize("name", ["caller", "prometheus"])
def test_pod_security_lets_them_in(found, name):
    caller, other = (template(found, "Deployment", f"plaudit-{each}")["spec"] for each in (name, "reward"))
    assert caller["securityContext"] == other["securityContext"]
    assert caller["containers"][0]["securityContext"] == other["containers"][0]["securityContext"]


@pytest.mark.parametrize("name", ["caller", "prometheus"])
def test_nothing_takes_them_for_a_service(found, name):
    labels = template(found, "Deployment", f"plaudit-{name}")["metadata"]["labels"]
    for each in of_kind(found, "Service"):
        assert not each["spec"]["selector"].items() <= labels.items()
    for each in of_kind(found, "PodDisruptionBudget", "Deployment"):
        expected = each["metadata"]["name"] == f"plaudit-{name}"
        assert matches(each["spec"]["selector"], labels) is expected


def test_every_script_that_a_pod_starts_is_mounted(found):
    for kind, name in (("Deployment", "plaudit-caller"), ("Job", "plaudit-models")):
        spec = template(found, kind, name)["spec"]
        (container,) = spec["containers"]
        (volume,) = (each for each in spec["volumes"] if each["name"] == "scripts")
        data = named(found, "ConfigMap", volume["configMap"]["name"])["data"]
        assert {"name": "scripts", "mountPath": "/scripts", "readOnly": True} in container["volumeMounts"]
        assert command(container)[1].removeprefix("/scripts/") in data and "tiny_models.py" in data


def asked(found, component):
    """Processors and bytes of a workload's pod."""
    (spec,) = (
        each["spec"] for _, each in templates(found) if each["metadata"]["labels"][COMPONENT] == component
    )
    requests = spec["containers"][0]["resources"]["requests"]
    return processors(requests["cpu"]), memory(requests["memory"])


@pytest.mark.parametrize("unit", [0, 1])
@pytest.mark.parametrize("more", [{"trainer": 2}, {"reward": 3 + 1}])
def test_what_there_is_more_of_fits_on_the_node_of_the_quickstart(found, more, unit):
    """The two trainers, later the three rewards and a fourth that is started before one of them goes."""
    local = sum(asked(objects("local"), each)[unit] for each in (*LOCAL, "trainer", "models"))
    ours = dict.fromkeys((*LOCAL, "caller", "prometheus"), 1) | more
    assert sum(asked(found, each)[unit] * count for each, count in ours.items()) <= local


# --- names that the tests go by


def selectors():
    return [*test_on_a_cluster.EXPORTED, *map(installation.of_service, (*LOCAL, "caller", "prometheus"))]


@pytest.mark.parametrize("selector", selectors())
def test_every_selector_takes_the_pods_of_one_workload(found, selector):
    wanted = dict(each.split("=") for each in selector.split(","))
    taken = []
    for each in of_kind(found, "Deployment", "Job"):
        labels = each["spec"]["template"]["metadata"]["labels"]
        if each["kind"] == "Job":  # by the cluster
            labels = labels | {"batch.kubernetes.io/job-name": each["metadata"]["name"]}
        taken += [each] if wanted.items() <= labels.items() else []
    assert len(taken) == 1


def test_every_metric_is_documented_and_its_port_open(found):
    names = {*test_on_a_cluster.EXPORTED.values(), "grpc_server_handled_total"}
    assert all(f"`{name}`" in PAGES for name in names)
    for component in ("policy", "reward", "reference"):
        assert (
            ports(template(found, "Deployment", f"plaudit-{component}"))["metrics"]
            == installation.METRICS_PORT
        )
    assert ports(template(found, "Job", installation.TRAINER))["metrics"] == installation.METRICS_PORT


def test_workloads_files_and_containers_are_there(found):
    for name in (installation.REWARD, installation.CALLER):
        kind, _, name = name.partition("/")
        (container,) = template(found, kind.capitalize(), name)["spec"]["containers"]
        assert container["name"] == "plaudit"
    caller = template(found, "Deployment", "plaudit-caller")["spec"]
    assert command(caller["containers"][0])[-2:] == ["plaudit-reward:50052", "/tmp/calls.json"]
    (runs,) = (each for each in caller["volumes"] if each["name"] == "runs")
    trainer = template(found, "Job", installation.TRAINER)["spec"]
    (theirs,) = (each for each in trainer["volumes"] if each["name"] == "runs")
    claims = [each["persistentVolumeClaim"]["claimName"] for each in (runs, theirs)]
    assert claims == ["plaudit-runs"] * 2
    assert named(found, "Namespace", installation.NAMESPACE)
    assert option(template(found, "Deployment", "plaudit-reward")["spec"]["containers"][0], "model") == (
        "/models/reward"
    )


# --- its Prometheus

PODS = """kubernetes_sd_configs:
      - {role: pod, namespaces: {own_namespace: true}}"""


def test_prometheus_takes_its_configuration_and_our_rules(found, tmp_path):
    """The pod's folders below another root, and without PODS, which Debian's promtool doesn't know."""
    spec = template(found, "Deployment", "plaudit-prometheus")["spec"]
    mounts = {each["name"]: each["mountPath"] for each in spec["containers"][0]["volumeMounts"]}
    for volume in (each for each in spec["volumes"] if "configMap" in each):
        folder = tmp_path / mounts[volume["name"]].removeprefix("/")
        folder.mkdir(parents=True)
        for file, text in named(found, "ConfigMap", volume["configMap"]["name"])["data"].items():
            text = text.replace("/etc/prometheus", f"{tmp_path}/etc/prometheus")
            (folder / file).write_text(text.replace(PODS, "static_configs: []"))
    config = option(spec["containers"][0], "config.file")
    said = run("promtool", "check", "config", "--syntax-only", f"{tmp_path}{config}")
    assert "is valid prometheus config file" in said


def test_it_labels_series_as_the_pod_monitor_does(found):
    data = named_like(found, "plaudit-prometheus-")["data"]["prometheus.yml"]
    (scrape,) = yaml.safe_load(data)["scrape_configs"]
    (monitor,) = of_kind(objects("base+monitoring"), "PodMonitor")
    given = {each["target_label"] for each in scrape["relabel_configs"] if "target_label" in each}
    targets = {re.sub(r"\W", "_", each) for each in monitor["spec"]["podTargetLabels"]}
    assert given == {"namespace", "pod", *targets}
    kept = {
        each["source_labels"][0].removeprefix("__meta_kubernetes_pod_"): each["regex"]
        for each in scrape["relabel_configs"]
        if each.get("action") == "keep"
    }
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    selector = monitor["spec"]["selector"]["matchLabels"]
    assert kept == {
        "container_port_name": endpoint["port"],
        **{f"label_{re.sub(r'[^a-z]', '_', key)}": value for key, value in selector.items()},
    }


def named_like(found, start):
    (each,) = (each for each in of_kind(found, "ConfigMap") if each["metadata"]["name"].startswith(start))
    return each


# --- the run


def test_its_services_are_those_of_the_local_overlay(config):
    local = tomllib.loads((K8S / "overlays/local/ppo.toml").read_text(encoding="utf-8"))["services"]
    ours = config.services
    assert (list(ours.policy), ours.reference, ours.reward) == (
        local["policy"], local["reference"], local["reward"]
    )  # fmt: skip


def test_it_writes_where_the_tests_read(config):
    assert str(config.run.folder) == f"/runs/{installation.RUN}"
    assert config.total_steps >= 100


def test_a_second_trainer_waits_for_as_long_as_the_first_may_take(config):
    assert config.services.connect_timeout >= 1800


def test_models_and_prompts_are_made_where_the_pods_look(found, config, tmp_path):
    (container,) = template(found, "Job", "plaudit-models")["spec"]["containers"]
    assert command(container)[-1] == "/models"
    make_tiny_models.main(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {"sft", "reward", "prompts.jsonl"}
    assert (config.model.path, config.critic.path) == ("/models/sft", "/models/reward")
    assert str(config.data.prompts) == "/models/prompts.jsonl"
    assert len(read_prompts(tmp_path / "prompts.jsonl")) >= config.ppo.batch_size


def test_the_tool_submits_the_second_run(found, tmp_path, monkeypatch):
    """To the API server of the tests, with the Job as it is rendered."""
    path = tmp_path / "kubeconfig"
    clock = api_server.Clock()
    with api_server.ApiServer(clock) as server:
        path.write_text(api_server.kubeconfig({"here": server.url}))
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
        server.put("jobs", named(found, "Job", installation.TRAINER))
        cluster = Cluster(connect(), installation.NAMESPACE, clock)
        run, text = submitting.checked(installation.OVERLAY / "ppo.toml", installation.SECOND_RUN)
        assert submitting.submit(cluster, run, text, None) == installation.SECOND_TRAINER
        assert server.objects["configmaps", installation.SECOND_TRAINER]["data"]["ppo.toml"] == text
