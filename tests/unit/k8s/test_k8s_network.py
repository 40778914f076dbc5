"""Who may call whom: routes from outside, and network policies within."""

from itertools import product
from urllib.parse import urlsplit

import pytest
from manifests import BASES, COMPONENT, named, objects, of_kind, ports, rendered, selected, templates

from plaudit.v1 import reward_pb2
from services.gateway import app as gateway_app
from services.oip import open_inference_pb2
from services.reward import oip
from services.reward.service import FULL_NAME as REWARD
from trainer.cluster import status


def test_routes_lead_to_a_port_of_a_service():
    production = objects("production")
    for each in of_kind(production, "GRPCRoute", "HTTPRoute"):
        for rule in each["spec"]["rules"]:
            for to in rule["backendRefs"]:
                service = named(production, "Service", to["name"])
                assert to["port"] in {port["port"] for port in service["spec"]["ports"]}


def test_the_grpc_route_names_the_services_of_a_reward_server():
    (route,) = of_kind(objects("production"), "GRPCRoute")
    asked = {match["method"]["service"] for rule in route["spec"]["rules"] for match in rule["matches"]}
    ours = {REWARD, oip.FULL_NAME}
    protos = (reward_pb2, open_inference_pb2)
    assert ours == {
        service.full_name for proto in protos for service in proto.DESCRIPTOR.services_by_name.values()
    }
    assert asked == {*ours, "grpc.health.v1.Health"}


def test_the_http_route_has_every_path_that_scores_and_none_of_operations():
    (route,) = of_kind(objects("production"), "HTTPRoute")
    asked = [match["path"] for rule in route["spec"]["rules"] for match in rule["matches"]]

    def leads_on(path):
        return any(
            path == each["value"] or (each["type"] == "PathPrefix" and path.startswith(each["value"] + "/"))
            for each in asked
        )

    scoring = {route.path for router in gateway_app.ROUTERS for route in router.routes}
    assert scoring and all(map(leads_on, scoring))
    assert not any(leads_on(route.path) for route in gateway_app.operations.routes)
    assert all(any(path.startswith(each["value"]) for path in scoring) for each in asked)


NETWORKED = [
    *("production", "production+gpu"),
    *(name for name, (_, parts) in BASES.items() if "network-policies" in parts),
]
MONITORING, COLLECTOR, DNS = (
    f"kubernetes.io/metadata.name={name}" for name in ("monitoring", "observability", "kube-system")
)
CALLERS, ANYBODY = "plaudit-caller=true", "anybody"
API_SERVER = (443, 6443, 8443, 16443)
WATCHED = ("policy", "reward", "reference", "trainer", "gateway")
INSIDE = {
    ("trainer", "policy", 50051),
    ("trainer", "reward", 50052),
    ("trainer", "reference", 50053),
    ("gateway", "reward", 50052),
    ("operator", "policy", 50051),
    ("operator", "reward", 50052),
    ("operator", "reference", 50053),
    ("operator", "trainer", 50060),
}
IN = {
    (CALLERS, "reward", 50052),
    (CALLERS, "gateway", 8080),
    (CALLERS, "trainer", 50060),
    *((MONITORING, name, 9100) for name in WATCHED),
}
OUT = {
    *((name, COLLECTOR, 4318) for name in WATCHED),
    *((name, DNS, 53) for name in (*WATCHED, "operator", "models")),
    *((name, ANYBODY, port) for name in ("trainer", "operator") for port in API_SERVER),
    *(("models", ANYBODY, port) for port in (80, 443)),
}


def rules(found, way):
    """(whom a policy selects, peer, its ports) of what it lets through by "ingress" or "egress"."""
    for each in of_kind(found, "NetworkPolicy"):
        if way.capitalize() in each["spec"]["policyTypes"]:
            for rule in each["spec"].get(way, ()):
                for peer in rule.get("from" if way == "ingress" else "to", [{}]):
                    yield each["spec"]["podSelector"], peer, [port["port"] for port in rule["ports"]]


def edges(found, way):
    """(from, to, port) that policies let through."""
    for selector, peer, numbers in rules(found, way):
        for us, them, port in product(whom(found, {"podSelector": selector}), whom(found, peer), numbers):
            yield (them, us, port) if way == "ingress" else (us, them, port)


def whom(found, peer):
    """Components, the label of a foreign namespace, or anybody."""
    if not peer:
        return [ANYBODY]
    if "podSelector" in peer:
        assert peer.keys() == {"podSelector"}
        return [pod["metadata"]["labels"][COMPONENT] for pod in selected(found, peer["podSelector"]).values()]
    return ["=".join(each) for each in peer["namespaceSelector"]["matchLabels"].items()]


def assert_ports_are_there(found):
    """Every port is a number, and one of each pod of ours that is called by it."""
    for way in ("ingress", "egress"):
        for selector, peer, numbers in rules(found, way):
            assert {type(number) for number in numbers} == {int}, (selector, peer, numbers)
            called = selector if way == "ingress" else peer.get("podSelector")
            if called is not None:
                pods = selected(found, called)
                assert pods, called
                for name, pod in pods.items():
                    assert set(numbers) <= set(ports(pod).values()), (name, numbers)


def beside(found, pod):
    """Objects, and a pod that no template among them makes."""
    return [*found, {"kind": "Job", "metadata": pod["metadata"], "spec": {"template": pod}}]


@pytest.fixture(params=NETWORKED)
def networked(request):
    """With a pod that has the labels of the account plaudit-operator."""
    account = named(objects("base+operator-access"), "ServiceAccount", "plaudit-operator")
    return beside(objects(request.param), {"metadata": account["metadata"], "spec": {"containers": []}})


def test_the_network_has_these_edges_and_no_others(networked):
    there = {pod["metadata"]["labels"][COMPONENT] for _, pod in templates(networked)}
    assert set(edges(networked, "ingress")) == INSIDE | IN
    assert set(edges(networked, "egress")) == INSIDE | {edge for edge in OUT if edge[0] in there}


def test_every_port_is_the_number_of_one_that_each_pod_behind_it_has(networked):
    assert_ports_are_there(networked)


def test_the_operator_may_call_every_pod_that_the_tool_asks(networked):
    asked = {
        ("operator", pod["metadata"]["labels"][COMPONENT], ports(pod)[status.PORT])
        for _, pod in templates(networked)
        if status.PORT in ports(pod)
    }
    assert asked == {edge for edge in INSIDE if edge[0] == "operator"}


def test_the_job_that_makes_the_models_is_among_them():
    assert "Job plaudit-models" in dict(templates(objects("local+monitoring")))


def test_nothing_else_may_talk():
    default = named(objects("production"), "NetworkPolicy", "default-deny")["spec"]
    assert default == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_spans_may_leave_for_the_collector_that_the_component_names():
    found = rendered("base", ("network-policies", "tracing"))
    (config,) = (each["data"] for each in of_kind(found, "ConfigMap") if "HOME" in each["data"])
    collector = urlsplit(config["OTEL_EXPORTER_OTLP_ENDPOINT"])
    policy = named(found, "NetworkPolicy", "to-collector")["spec"]
    ((rule,),) = (policy["egress"],)
    ((peer,),) = (rule["to"],)
    (namespace,) = peer["namespaceSelector"]["matchLabels"].values()
    assert namespace == collector.hostname.partition(".")[2]
    assert rule["ports"] == [{"port": collector.port}]
    pods = selected(found, policy["podSelector"]).values()
    traced = {pod["metadata"]["labels"][COMPONENT] for pod in pods}
    assert traced == {"policy", "reward", "reference", "gateway", "trainer"}


def test_names_are_found():
    dns = named(objects("production"), "NetworkPolicy", "dns")["spec"]
    assert dns["podSelector"] == {}
    assert dns["egress"][0]["ports"] == [{"port": 53, "protocol": kind} for kind in ("UDP", "TCP")]
