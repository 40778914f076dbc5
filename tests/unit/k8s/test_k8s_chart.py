"""The Helm chart makes the same objects as kustomize, field by field, and refuses values that can't be."""

import json
import re

import pytest
import typer
import yaml
from kubernetes_tools import attempt, run
from manifests import (
    K8S,
    containers,
    load,
    named,
    objects,
    of_kind,
    reference,
    rendered,
    templates,
)
from test_k8s_commands import parsed
from test_k8s_network import DNS, assert_ports_are_there, beside, edges
from test_k8s_renders import NEWEST, OLDEST, validated

import plaudit
from plaudit.cli import app

CHART = K8S / "chart"
OVERLAYS = {
    "cpu": (),
    "local": ("-f", CHART / "values/local.yaml"),
    "gpu": ("-f", CHART / "values/gpu.yaml"),
    "production": ("-f", CHART / "values/production.yaml"),
}
KEEP = "helm.sh/resource-policy"
DIGEST = "registry.example.com/plaudit-models@sha256:" + "0" * 64
FETCH = "models.fetch.url=https://models.example.com/plaudit-models.tar"
FETCHED = f"{FETCH},models.fetch.sha256={'0' * 64}"
OPTIONS = {  # values → the components that they stand for
    "autoscaling.by=hpa": ("autoscaling-hpa",),
    "autoscaling.by=keda": ("autoscaling-keda",),
    "gpu.enabled=true": ("gpu",),
    "gpu.enabled=true,vllm.enabled=true": ("gpu", "vllm-policy"),
    "gateway.image.suffix=-gateway": ("light-gateway",),
    "monitoring.enabled=true": ("monitoring",),
    "monitoring.enabled=true,tls.enabled=true": ("tls", "monitoring-tls"),
    "networkPolicies.enabled=true": ("network-policies",),
    f"models.image={DIGEST}": ("oci-models",),
    FETCHED: ("fetched-models",),
    f"trainer.kind=TrainJob,{FETCHED}": ("fetched-models", "trainjob"),
    "oidc.issuer=https://idp.example.com,oidc.jwks=https://idp.example.com/keys": ("oidc",),
    "operatorAccess.enabled=true": ("operator-access",),
    "quota.enabled=true": ("quota",),
    "routes.enabled=true": ("gateway-routes",),
    "token.secret=plaudit-token": ("token",),
    "tracing.endpoint=http://collector.observability:4318": ("tracing",),
    "tls.enabled=true": ("tls",),
    "tls.enabled=true,routes.enabled=true": ("tls", "gateway-routes", "backend-tls"),
    "tokens.secret=plaudit-tokens": ("tokens",),
    "trainer.kind=JobSet": ("jobset",),
    "trainer.kind=TrainJob": ("trainjob",),
    f"trainer.kind=JobSet,tls.enabled=true,tokens.secret=plaudit-tokens,models.image={DIGEST}": (
        *("tls", "tokens", "oci-models", "jobset"),
    ),
    "trainer.kind=TrainJob,tls.enabled=true,tokens.secret=plaudit-tokens,gpu.enabled=true": (
        *("tls", "tokens", "gpu", "trainjob"),
    ),
}


def template(*arguments):
    """What the chart makes for values, hooks included."""
    return load(run("helm", "template", "plaudit", CHART, "--namespace", "plaudit", *arguments))


def is_hook(each):
    return "helm.sh/hook" in each["metadata"].get("annotations", {})


def comparable(found):
    """Objects by kind and name, without what the two tools call differently: see `plain`."""
    kept = (each for each in found if each["kind"] != "Namespace" and not is_hook(each))
    return {reference(each): each for each in map(plain, kept)}


def plain(value):
    """Without the tool's name, hashes of configuration, and the order of named things."""
    if isinstance(value, dict):
        left_out = {"app.kubernetes.io/managed-by", "checksum/config", KEEP}
        made = {key: plain(each) for key, each in value.items() if key not in left_out}
        return {key: each for key, each in made.items() if (key, each) != ("annotations", {})}
    if isinstance(value, list):
        made = [plain(each) for each in value]
        if all(isinstance(each, dict) and {"name", "mountPath"} & each.keys() for each in made):
            made.sort(key=lambda each: each.get("mountPath") or each["name"])
        return made
    if isinstance(value, str):
        return re.sub(r"^(plaudit-(?:environment|ppo))-[0-9a-z]{10}$", r"\1", value)
    return value


def assert_same(chart, kustomize):
    chart, kustomize = comparable(chart), comparable(kustomize)
    assert chart.keys() == kustomize.keys()
    for name in chart:
        assert chart[name] == kustomize[name], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_values_of_an_overlay_make_its_objects(overlay):
    assert_same(template(*OVERLAYS[overlay]), objects(overlay))


@pytest.mark.parametrize("option", OPTIONS)
def test_a_value_makes_what_its_components_make(option):
    assert_same(template("--set", option), rendered("base", OPTIONS[option]))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_hooks_are_valid_to_the_letter(version):
    hooks = [each for each in template(*OVERLAYS["production"]) if is_hook(each)]
    assert [each["kind"] for each in hooks].count("Pod") == 1
    for each in hooks:
        validated(json.dumps(each), version)


def test_helm_test_asks_every_service_and_may():
    found = template(*OVERLAYS["production"])
    (pod,) = (each for each in found if is_hook(each) and each["kind"] == "Pod")
    (container,) = pod["spec"]["containers"]
    command, *arguments = [*container["command"], *container["args"]]
    assert command == "plaudit" and arguments[0] == "status"
    asked = set()
    for address in (each for each in arguments[1:] if ":" in each):
        host, _, port = address.partition(":")
        assert named(found, "Service", host)["spec"]["ports"][0]["port"] == int(port)
        asked.add(("test", host.removeprefix("plaudit-"), int(port)))
    assert {"name": "PLAUDIT_TOKEN_FILE", "value": "/token/token"} in container["env"]
    assert {"name": "token", "mountPath": "/token", "readOnly": True} in container["volumeMounts"]
    found = beside(found, pod)
    assert {edge for edge in edges(found, "ingress") if "test" in edge} == asked
    assert {edge for edge in edges(found, "egress") if "test" in edge} == {*asked, ("test", DNS, 53)}
    assert_ports_are_there(found)


def test_its_pod_is_as_restricted_as_the_others():
    found = template()
    (pod,) = (each for each in found if is_hook(each) and each["kind"] == "Pod")
    other = named(found, "Deployment", "plaudit-gateway")["spec"]["template"]["spec"]
    for key in ("securityContext", "enableServiceLinks", "automountServiceAccountToken"):
        assert pod["spec"][key] == other[key]
    assert pod["spec"]["containers"][0]["securityContext"] == other["containers"][0]["securityContext"]


def test_the_plaudit_command_knows_what_helm_test_says():
    (pod,) = (each for each in template() if is_hook(each) and each["kind"] == "Pod")
    (container,) = pod["spec"]["containers"]
    group = typer.main.get_command(app)
    values = group.commands["status"].make_context("status", list(container["args"])).params
    assert len(values["addresses"]) == 3


def test_image_and_tag_reach_every_container():
    image = "image.repository=registry.example.com/plaudit,image.tag=0.2.0"
    found = template("--set", image, "--set", "quickstart.enabled=true")
    pods = [pod for _, pod in templates(found)] + of_kind(found, "Pod")
    images = {each["image"] for pod in pods for each in containers(pod)}
    assert images == {"registry.example.com/plaudit:0.2.0"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("gateway.image.repository=mirror.example.com/light", "mirror.example.com/light:0.1.0"),
        ("gateway.image.tag=0.3.0,image.tag=0.2.0", "plaudit:0.3.0"),
        ("gateway.image.repository=plaudit-gateway,image.tag=0.2.0", "plaudit-gateway:0.2.0"),
        ("gateway.image.suffix=-light,image.repository=example.com/p", "example.com/p-light:0.1.0"),
    ],
)
def test_the_gateway_may_have_an_image_of_its_own(values, expected):
    pod = named(template("--set", values), "Deployment", "plaudit-gateway")["spec"]["template"]
    assert [each["image"] for each in containers(pod)] == [expected]


def test_a_change_of_configuration_rolls_the_pods():
    def checksums(*arguments):
        found = templates(template(*arguments))
        return {pod["metadata"]["annotations"]["checksum/config"] for _, pod in found}

    (one,) = checksums()
    (other,) = checksums("--set-file", f"trainer.config={CHART / 'files/quickstart.toml'}")
    assert one != other


def test_a_run_of_ones_own():
    path = CHART / "files/quickstart.toml"
    found = template("--set-file", f"trainer.config={path}")
    assert named(found, "ConfigMap", "plaudit-ppo")["data"]["ppo.toml"] == path.read_text(encoding="utf-8")


def test_more_options_reach_the_programs():
    found = template("--set", "policy.args={--dtype=bfloat16}", "--set", "trainer.args={--set=run.seed=1}")
    policy = named(found, "Deployment", "plaudit-policy")["spec"]["template"]["spec"]["containers"][0]
    trainer = named(found, "Job", "plaudit-trainer")["spec"]["template"]["spec"]["containers"][0]
    assert parsed([*policy["command"], *policy["args"]])["dtype"] == "bfloat16"
    assert parsed([*trainer["command"], *trainer["args"]])["set_"] == ("run.seed=1",)


def test_another_namespace_is_meant_everywhere():
    made = run("helm", "template", "plaudit", CHART, "--namespace", "team-a", *OVERLAYS["production"])
    for each in load(made):
        if each["kind"] != "PriorityClass":
            assert each["metadata"]["namespace"] == "team-a", reference(each)
    for each in of_kind(load(made), "ScaledObject"):
        assert all('namespace="team-a"' in t["metadata"]["query"] for t in each["spec"]["triggers"])


def test_uninstalling_keeps_models_and_checkpoints():
    volumes = of_kind(template(), "PersistentVolumeClaim")
    assert len(volumes) == 2
    assert all(each["metadata"]["annotations"][KEEP] == "keep" for each in volumes)


def test_services_without_a_trainer():
    found = template("--set", "trainer.kind=none")
    assert not of_kind(found, "Job", "JobSet", "TrainJob")
    assert len(of_kind(found, "Deployment")) == 4


WRONG = {
    "polciy.replicas=1": "polciy",
    "image.tag=latest": "/image/tag",
    "gateway.image=plaudit:0.1.0": "/gateway/image",
    "gateway.image.tag=latest": "/gateway/image/tag",
    "autoscaling.by=vpa": "/autoscaling/by",
    "policy.replicas=-1": "/policy/replicas",
    "policy.args={dtype}": "/policy/args/0",
    "models.image=models:1": "/models/image",
    "trainer.kind=CronJob": "/trainer/kind",
    "tls.issuerRef.kind=": "/tls/issuerRef/kind",
    "tls.issuer=vault": "/tls",
    "tokens.callers=": "/tokens/callers",
    "oidc.jwks=http://idp.example.com/keys": "/oidc/jwks",
    "oidc.audience=": "/oidc/audience",
    "roots={models}": "/roots/0",
    "roots={/models:/runs}": "/roots/0",
    "oidc.issuer=https://idp.example.com": "oidc.jwks is the URL",
    "reward.resources.limits=null": "/reward/resources",
    "models.storage=much": "/models/storage",
    FETCH: "/models/fetch/sha256",
    f"{FETCHED}0": "/models/fetch/sha256",
    "models.fetch.url=models.tar": "/models/fetch/url",
    "models.fetch.image=curlimages/curl": "/models/fetch/image",
    "models.fetch.image=curlimages/curl:latest": "/models/fetch/image",
}


@pytest.mark.parametrize("value", WRONG)
def test_values_that_cannot_be_are_refused_by_their_path(value):
    done = attempt("helm", "template", "plaudit", CHART, "--set", value)
    assert done.returncode != 0 and WRONG[value] in done.stderr, done.stderr


def test_the_schema_knows_every_value():
    """And each value a default: neither file has a key that the other lacks."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))

    def keys(rule, prefix=""):
        if "$ref" in rule:
            rule = schema["$defs"][rule["$ref"].rpartition("/")[2]]
        for key, child in rule.get("properties", {}).items():
            yield prefix + key
            yield from keys(child, f"{prefix}{key}.")

    def given(table, prefix=""):
        for key, child in table.items():
            yield prefix + key
            if isinstance(child, dict):
                yield from given(child, f"{prefix}{key}.")

    free = re.compile(r"^(global|.*\.(requests|limits|hard)\..*)$")
    known, defaulted = set(keys(schema)), set(given(values))
    assert {key for key in known ^ defaulted if not free.match(key)} == set()


def test_lint_has_nothing_to_say():
    said = run("helm", "lint", "--strict", CHART)
    assert "1 chart(s) linted, 0 chart(s) failed" in said and "[WARNING]" not in said


def test_the_notes_say_what_to_do_next():
    where = ("--namespace", "plaudit", "--dry-run=client")
    done = attempt("helm", "install", "plaudit", CHART, *where, *OVERLAYS["production"])
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "create secret generic plaudit-tokens --from-file=tokens.toml" in notes
    assert "create secret generic plaudit-callers" in notes
    assert "plaudit-token " not in notes
    assert "helm -n plaudit test plaudit" in notes and "delete job plaudit-trainer" in notes


def test_a_package_holds_what_the_links_point_to(tmp_path):
    """Files that kustomize applies, too, are links in the chart; a packed chart has their content."""
    run("helm", "package", CHART, "--destination", tmp_path)
    (package,) = tmp_path.glob("*.tgz")
    made = run("helm", "template", "plaudit", package, "--namespace", "plaudit", *OVERLAYS["production"])
    assert_same(load(made), objects("production"))


def test_chart_and_application_have_plaudits_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["version"] == chart["appVersion"] == plaudit.__version__
    assert chart["kubeVersion"] == f">={OLDEST}.0-0"
