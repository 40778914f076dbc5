"""With TLS nothing asks for plaintext, everybody trusts the CA, and certificates have the right names."""

import pytest
from kubernetes_tools import run
from manifests import COMPONENT, SCENES, command, load, objects, of_kind, rendered, templates
from test_k8s_chart import CHART, is_hook, template

SECURE = ("production", "base+tls")


@pytest.fixture(params=SECURE)
def found(request):
    return objects(request.param)


def environment(container):
    return {each["name"]: each.get("value") for each in container["env"]}


def test_nothing_asks_for_plaintext_and_every_server_has_a_certificate(found):
    for name, pod in templates(found):
        (container,) = pod["spec"]["containers"]
        assert "--insecure" not in command(container) and "PLAUDIT_INSECURE" not in environment(container)
        assert {"--tls-cert=/tls/tls.crt", "--tls-key=/tls/tls.key"} <= set(command(container)), name
        assert {"name": "tls", "mountPath": "/tls", "readOnly": True} in container["volumeMounts"]


def test_without_tls_it_is_asked_for_by_name():
    for name, pod in templates(objects("cpu")):
        (container,) = pod["spec"]["containers"]
        assert "--insecure" in command(container), name
        is_trainer = pod["metadata"]["labels"][COMPONENT] == "trainer"
        assert ("PLAUDIT_INSECURE" in environment(container)) is is_trainer, "it alone sends a token"


def test_who_calls_trusts_the_ca(found):
    trusting = {
        pod["metadata"]["labels"][COMPONENT]: environment(pod["spec"]["containers"][0]).get("PLAUDIT_TLS_CA")
        for _, pod in templates(found)
    }
    callers = {"trainer", "gateway"}
    assert {name for name, ca in trusting.items() if ca} == callers
    assert {trusting[name] for name in callers} == {"/tls/ca.crt"}


def test_the_certificate_has_the_name_of_every_service(found):
    (certificate,) = (each["spec"] for each in of_kind(found, "Certificate") if "dnsNames" in each["spec"])
    services = {each["metadata"]["name"] for each in of_kind(found, "Service")}
    assert services | {f"{name}.plaudit.svc" for name in services} <= set(certificate["dnsNames"])
    assert {"server auth", "client auth"} <= set(certificate["usages"])


def test_issuers_are_there(found):
    issuers = {each["metadata"]["name"]: each["spec"] for each in of_kind(found, "Issuer")}
    certificates = {each["metadata"]["name"]: each["spec"] for each in of_kind(found, "Certificate")}
    assert {each["issuerRef"]["name"] for each in certificates.values()} == issuers.keys()
    authority = certificates["plaudit-ca"]
    assert authority["isCA"] and issuers["plaudit-ca"]["ca"]["secretName"] == authority["secretName"]


def keys_at(pod, container):
    """Path in a container → (Secret, key; None for a key of the file's own name), of all that is mounted.

    Nothing is mounted by `subPath`: what is doesn't change when the Secret does.
    """
    assert not any("subPath" in mount for mount in container["volumeMounts"])
    places = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    found = {}
    for volume in pod["spec"]["volumes"]:
        if secret := volume.get("secret"):
            assert secret["defaultMode"] == 0o440
            for item in secret.get("items", [{"path": volume["name"], "key": None}]):
                found[f"{places[volume['name']]}/{item['path']}"] = (secret["secretName"], item["key"])
    return found


@pytest.mark.parametrize("component", ["token", "tokens"])
def test_a_secret_is_shown_by_who_calls(component):
    found = rendered("base", (component,))
    shown = {}
    for _, pod in templates(found):
        (container,) = pod["spec"]["containers"]
        if file := environment(container).get("PLAUDIT_TOKEN_FILE"):
            shown[pod["metadata"]["labels"][COMPONENT]] = keys_at(pod, container)[file]
    asked = {"policy", "reward", "reference", "trainer"}
    if component == "token":
        assert shown == dict.fromkeys(asked, ("plaudit-token", None))
    else:
        assert shown == {name: ("plaudit-callers", name) for name in ("trainer", "gateway")}
    for name, pod in templates(found):
        reads = "--tokens=/tokens/tokens.toml" in command(pod["spec"]["containers"][0])
        assert reads is (component == "tokens"), name


@pytest.mark.parametrize(("values", "expected"), [("tls.enabled=true", True), ("tls.enabled=false", False)])
def test_helm_test_speaks_what_the_services_speak(values, expected):
    (pod,) = (each for each in template("--set", values) if is_hook(each) and each["kind"] == "Pod")
    (container,) = pod["spec"]["containers"]
    given = {each["name"]: each.get("value") for each in container["env"]}
    assert ("PLAUDIT_TLS_CA" in given) is expected and ("PLAUDIT_INSECURE" in given) is not expected
    assert ("/tls" in {mount["mountPath"] for mount in container["volumeMounts"]}) is expected


def test_an_issuer_of_ones_own_takes_the_place_of_the_ca():
    own = "tls.enabled=true,tls.issuerRef.name=vault,tls.issuerRef.kind=ClusterIssuer"
    found = template("--set", own)
    (certificate,) = of_kind(found, "Certificate")
    assert certificate["spec"]["issuerRef"] == {
        "group": "cert-manager.io",
        "kind": "ClusterIssuer",
        "name": "vault",
    }
    assert not of_kind(found, "Issuer")


def test_certificates_have_the_names_of_the_releases_namespace():
    made = run("helm", "template", "p", CHART, "--namespace", "team-a", "--set", "tls.enabled=true")
    (certificate,) = (each for each in of_kind(load(made), "Certificate") if "dnsNames" in each["spec"])
    assert "plaudit-reward.team-a.svc" in certificate["spec"]["dnsNames"]
    assert not any("plaudit.svc" in name for name in certificate["spec"]["dnsNames"])


# ---- Prometheus ----


def endpoint(found):
    (monitor,) = of_kind(found, "PodMonitor")
    (only,) = monitor["spec"]["podMetricsEndpoints"]
    return only


def test_prometheus_scrapes_by_tls_where_pods_speak_it():
    plain = endpoint(objects("base+monitoring"))
    secure = endpoint(objects("production"))
    assert "scheme" not in plain and "tlsConfig" not in plain
    assert {key: value for key, value in secure.items() if key not in ("scheme", "tlsConfig")} == plain
    assert secure["scheme"] == "https" and not secure["tlsConfig"].get("insecureSkipVerify")


def test_prometheus_trusts_the_ca_for_a_name_that_every_pods_certificate_has():
    found = objects("production")
    tls = endpoint(found)["tlsConfig"]
    (certificate,) = (each["spec"] for each in of_kind(found, "Certificate") if "dnsNames" in each["spec"])
    assert tls["ca"] == {"secret": {"name": certificate["secretName"], "key": "ca.crt"}}
    assert tls["serverName"] in certificate["dnsNames"]
    assert tls.keys() == {"ca", "serverName"}, "the pods' key is none of its business"


@pytest.mark.parametrize("scene", SCENES)
def test_no_pod_with_tls_is_scraped_in_plaintext(scene):
    found = objects(scene)
    if not of_kind(found, "PodMonitor") or scene == "base+monitoring-tls":
        return  # which goes with tls
    is_plain = endpoint(found).get("scheme") != "https"
    for name, pod in templates(found):
        for container in filter(command, pod["spec"]["containers"]):  # a TrainJob says its own elsewhere
            if {"name": "metrics", "containerPort": 9100} in container.get("ports", []):
                has_tls = any(word.startswith("--tls-cert=") for word in command(container))
                assert has_tls is not is_plain and "--metrics-plaintext" not in command(container), name
