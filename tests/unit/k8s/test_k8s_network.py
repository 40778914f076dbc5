"""Who may call whom: routes from outside, and network policies within."""

from urllib.parse import urlsplit

from manifests import COMPONENT, named, objects, of_kind, ports, reference, rendered, selected

from plaudit.v1 import reward_pb2
from services.gateway import app as gateway_app
from services.oip import open_inference_pb2
from services.reward import oip
from services.reward.service import FULL_NAME as REWARD


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


def edges(found):
    """(from, to, port) that the ingress side allows: components, or the label of a foreign namespace."""
    for each in of_kind(found, "NetworkPolicy"):
        for rule in each["spec"].get("ingress", ()):
            for pod in selected(found, each["spec"]["podSelector"]).values():
                for peer in rule["from"]:
                    for port in rule["ports"]:
                        if port["port"] in ports(pod):
                            yield from_whom(peer), pod["metadata"]["labels"][COMPONENT], port["port"]


def from_whom(peer):
    if "podSelector" in peer:
        return peer["podSelector"]["matchLabels"][COMPONENT]
    return next(f"{key}={value}" for key, value in peer["namespaceSelector"]["matchLabels"].items())


MONITORING, CALLERS = "kubernetes.io/metadata.name=monitoring", "plaudit-caller=true"


def test_the_network_has_these_edges_and_no_others():
    assert set(edges(objects("production"))) == {
        ("trainer", "policy", "grpc"),
        ("trainer", "reward", "grpc"),
        ("trainer", "reference", "grpc"),
        ("gateway", "reward", "grpc"),
        (CALLERS, "reward", "grpc"),
        (CALLERS, "gateway", "http"),
        (CALLERS, "trainer", "grpc"),
        *((MONITORING, name, "metrics") for name in ("policy", "reward", "reference", "trainer", "gateway")),
    }


def test_whoever_may_be_called_by_a_pod_of_ours_may_be_called_from_it():
    production = objects("production")
    out = {
        (pod["metadata"]["labels"][COMPONENT], target["metadata"]["labels"][COMPONENT], port["port"])
        for each in of_kind(production, "NetworkPolicy")
        for rule in each["spec"].get("egress", ())
        for pod in selected(production, each["spec"]["podSelector"]).values()
        for peer in rule.get("to", ())
        if "podSelector" in peer
        for target in selected(production, peer["podSelector"]).values()
        for port in rule["ports"]
    }
    inside = {edge for edge in edges(production) if "=" not in edge[0]}
    assert out == inside


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


def test_every_port_of_a_policy_is_one_that_a_selected_pod_names():
    production = objects("production")
    for each in of_kind(production, "NetworkPolicy"):
        for rule in each["spec"].get("ingress", ()):
            pods = selected(production, each["spec"]["podSelector"]).values()
            for port in rule["ports"]:
                assert any(port["port"] in ports(pod) for pod in pods), reference(each)


def test_the_trainer_reaches_the_cluster_and_names_are_found():
    production = objects("production")
    trainer = named(production, "NetworkPolicy", "from-trainer")["spec"]
    assert {"ports": [{"port": 443}, {"port": 6443}]} in trainer["egress"]
    dns = named(production, "NetworkPolicy", "dns")["spec"]
    assert dns["podSelector"] == {} and {port["port"] for port in dns["egress"][0]["ports"]} == {53}
