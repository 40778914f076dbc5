"""Everything that names something else names what is there: selectors, ports, volumes, configuration."""

import tomllib

import pytest
from manifests import (
    COMPONENT,
    SCENES,
    containers,
    named,
    objects,
    of_kind,
    option,
    ports,
    reference,
    selected,
    templates,
)

from trainer.ppo.cluster_policy import ClusterService

MADE_BY_HAND = {
    *(("Secret", f"plaudit-{name}") for name in ("token", "tokens", "callers")),
    ("ConfigMap", "pip"),
}


@pytest.fixture(params=SCENES)
def found(request):
    return objects(request.param)


def test_services_select_one_workload_and_a_port_that_it_names(found):
    for each in of_kind(found, "Service"):
        pods = selected(found, {"matchLabels": each["spec"]["selector"]})
        if "jobset" not in str(each):
            assert len(pods) >= 1, reference(each)
        assert {pod["metadata"]["labels"][COMPONENT] for pod in pods.values()} == {
            each["metadata"]["labels"][COMPONENT]
        }
        for port in each["spec"]["ports"]:
            for pod in pods.values():
                assert ports(pod)[port["targetPort"]] == port["port"], reference(each)


def test_grpc_services_are_headless_and_say_that_they_speak_http2(found):
    for each in of_kind(found, "Service"):
        (port,) = each["spec"]["ports"]
        grpc = port["name"] == "grpc"
        assert (each["spec"].get("clusterIP") == "None") is grpc, reference(each)
        plain = "kubernetes.io/h2c" if grpc else "http"
        assert port["appProtocol"] == ("https" if of_kind(found, "Certificate") else plain)


def test_deployments_and_budgets_select_their_own_pods(found):
    budgets = {each["metadata"]["name"]: each for each in of_kind(found, "PodDisruptionBudget")}
    deployments = of_kind(found, "Deployment")
    assert budgets.keys() == {each["metadata"]["name"] for each in deployments}
    for each in deployments:
        mine = {reference(each)}
        assert selected(found, each["spec"]["selector"]).keys() == mine
        budget = budgets[each["metadata"]["name"]]["spec"]
        assert selected(found, budget["selector"]).keys() == mine
        assert budget["maxUnavailable"] == 1
        assert (
            budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        )  # or one that never starts blocks a drain


def test_autoscalers_aim_at_deployments(found):
    for each in of_kind(found, "ScaledObject", "HorizontalPodAutoscaler"):
        assert named(found, "Deployment", each["spec"]["scaleTargetRef"]["name"])


def test_prometheus_finds_a_port_in_every_pod(found):
    for each in of_kind(found, "PodMonitor"):
        pods = selected(found, each["spec"]["selector"])
        endpoints = {endpoint["port"] for endpoint in each["spec"]["podMetricsEndpoints"]}
        named_ports = {name: ports(pod).keys() for name, pod in pods.items()}
        for name, known in named_ports.items():
            assert known & endpoints or name == "Job plaudit-models", name
        assert endpoints <= set().union(*named_ports.values())


def mounted(volumes):
    """(kind, name) of what volumes have their content from."""
    for volume in volumes:
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]


def references(template):
    """(kind, name) of what a pod can't run without."""
    spec = template["spec"]
    yield "PriorityClass", spec["priorityClassName"]
    if "serviceAccountName" in spec:
        yield "ServiceAccount", spec["serviceAccountName"]
    yield from mounted(spec["volumes"])
    for container in containers(template):
        for each in container.get("envFrom", ()):
            yield "ConfigMap", each["configMapRef"]["name"]
        for each in container.get("env", ()):
            source = each.get("valueFrom", {})
            if "secretKeyRef" in source:
                yield "Secret", source["secretKeyRef"]["name"]
            if "configMapKeyRef" in source:
                yield "ConfigMap", source["configMapKeyRef"]["name"]


def test_what_pods_refer_to_is_there(found):
    there = {(each["kind"], each["metadata"]["name"]) for each in found} | MADE_BY_HAND
    there |= {("Secret", each["spec"]["secretName"]) for each in of_kind(found, "Certificate")}
    for name, template in templates(found):
        assert set(references(template)) <= there, name
        volumes = {volume["name"] for volume in template["spec"]["volumes"]}
        mounted = {mount["name"] for each in containers(template) for mount in each["volumeMounts"]}
        assert mounted == volumes, name


def test_configuration_is_named_by_its_content(found):
    """So that pods roll when it changes; the dashboards are found by label instead."""
    for each in of_kind(found, "ConfigMap"):
        name = each["metadata"]["name"]
        if name != "plaudit-dashboards":
            assert len(name.rpartition("-")[2]) == 10, name
            assert any(("ConfigMap", name) in set(references(pod)) for _, pod in templates(found)), name


def test_the_run_asks_the_services_that_are_there(found):
    (config,) = (each for each in of_kind(found, "ConfigMap") if "ppo.toml" in each["data"])
    services = tomllib.loads(config["data"]["ppo.toml"])["services"]
    for role in ("reward", "reference"):
        service = named(found, "Service", f"plaudit-{role}")
        assert services[role] == f"plaudit-{role}:{service['spec']['ports'][0]['port']}"
    (policy,) = map(ClusterService.parse, services["policy"])
    service = named(found, "Service", policy.name)
    assert policy.port == service["spec"]["ports"][0]["name"]  # what an EndpointSlice calls it


def test_the_gateway_asks_the_reward_service(found):
    (container,) = named(found, "Deployment", "plaudit-gateway")["spec"]["template"]["spec"]["containers"]
    host, _, port = option(container, "reward").partition(":")
    assert named(found, "Service", host)["spec"]["ports"][0]["port"] == int(port)


def test_models_are_read_where_they_are_mounted(found):
    """The policy and its reference start from the same model, which the learner starts from, too."""
    read = {}
    for each in of_kind(found, "Deployment"):
        (container,) = each["spec"]["template"]["spec"]["containers"]
        if each["metadata"]["name"] != "plaudit-gateway":
            read[each["metadata"]["name"]] = option(container, "model")
    (config,) = (each for each in of_kind(found, "ConfigMap") if "ppo.toml" in each["data"])
    run = tomllib.loads(config["data"]["ppo.toml"])
    assert read["plaudit-policy"] == read["plaudit-reference"] == run["model"]["path"] == "/models/sft"
    assert read["plaudit-reward"] == run["critic"]["path"] == "/models/reward"
    assert run["run"]["directory"] == "/runs"
    assert run["data"]["prompts"].startswith("/models/")
