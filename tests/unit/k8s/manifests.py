"""Rendered manifests, and the ways into them that policy tests share."""

import os
import tempfile
from functools import cache
from pathlib import Path

import yaml
from kubernetes_tools import run

ROOT = Path(__file__).parents[3]
K8S = ROOT / "k8s"
VERSION = "0.1.0"
PART, COMPONENT = "app.kubernetes.io/name", "app.kubernetes.io/component"
OVERLAYS = ("local", "cpu", "gpu", "production")
COMPONENTS = tuple(
    sorted(path.name for path in (K8S / "components").iterdir() if path.is_dir() and path.name != "common")
)
OTHER_TRAINERS = ("jobset", "trainjob")
"""Components that copy the pod of the trainer's Job, and so come after those that change it."""
SERVING = ("policy", "reward", "reference")
ALL = (
    *("gateway-routes", "gpu", "light-gateway", "monitoring-tls", "network-policies", "operator-access"),
    *("oidc", "quota", "token", "tracing", "vllm-policy"),
)
BASES = {  # combinations, each of a base and components; what excludes each other stands in different ones
    **{name: (f"overlays/{name}", ()) for name in OVERLAYS},
    **{f"base+{name}": ("base", (name,)) for name in COMPONENTS},
    "everything+keda": ("base", (*ALL, "autoscaling-keda", "oci-models", "tls", "backend-tls")),
    "everything+hpa+jobset": ("base", (*ALL, "autoscaling-hpa", "oci-models", "tls", "jobset")),
    "everything+keda+trainjob": ("base", (*ALL, "autoscaling-keda", "oci-models", "tls", "trainjob")),
    "local+monitoring": ("overlays/local", ("monitoring", "network-policies", "token", "quota")),
    "production+fetched": ("overlays/production", ("fetched-models", "jobset")),
    "production+gpu": ("overlays/production", ("gpu", "vllm-policy", "oci-models")),
}
SCENES = tuple(BASES)
SHARED = "PLAUDIT_KUSTOMIZED"
"""Names the folder in which the processes of one test run keep what kustomize made; conftest.py sets it."""


def objects(scene):
    """The objects of a combination; to be looked at, not changed."""
    return rendered(*BASES[scene])


@cache
def rendered(base, components):
    """The objects of a base with components."""
    if SHARED not in os.environ:
        return load(_render(base, components))
    kept = Path(os.environ[SHARED]) / "+".join((base.replace("/", "-"), *components))
    if not kept.exists():
        whole = kept.with_name(f"{os.getpid()}")
        whole.write_text(_render(base, components), encoding="utf-8")
        whole.rename(kept)
    return load(kept.read_text(encoding="utf-8"))


def _render(base, components):
    if not components:
        return _kustomized(K8S / base)
    with tempfile.TemporaryDirectory() as folder:
        here = os.path.relpath(K8S, Path(folder).resolve())
        content = {
            "resources": [f"{here}/{base}"],
            "components": [f"{here}/components/{name}" for name in components],
        }
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(content))
        return _kustomized(folder)


def kustomize(folder):
    """The objects of a kustomization."""
    return load(_kustomized(folder))


def _kustomized(folder):
    return run("kubectl", "kustomize", folder)


def load(text):
    """The objects of a stream of YAML."""
    return [each for each in yaml.load_all(text, yaml.CSafeLoader) if each]


def of_kind(found, *kinds):
    return [each for each in found if each["kind"] in kinds]


def named(found, kind, name):
    (each,) = (each for each in of_kind(found, kind) if each["metadata"]["name"] == name)
    return each


def reference(each):
    """Kind and name, for messages."""
    return f"{each['kind']} {each['metadata']['name']}"


def templates(found):
    """Pod templates of everything that makes pods, by the object's kind and name."""
    for each in found:
        spec = each.get("spec", {})
        if each["kind"] in ("Deployment", "Job"):
            yield reference(each), spec["template"]
        if each["kind"] == "TrainingRuntime":
            spec = spec["template"]["spec"]
        for job in spec.get("replicatedJobs", ()):
            yield reference(each), job["template"]["spec"]["template"]


def containers(template):
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


def command(container):
    return [*container.get("command", ()), *container.get("args", ())]


def option(container, name):
    """The value of --name=value."""
    (value,) = (each.split("=", 1)[1] for each in command(container) if each.startswith(f"--{name}="))
    return value


def selected(found, selector):
    """Pod templates that a selector takes, by the object that makes them."""
    return {name: each for name, each in templates(found) if matches(selector, each["metadata"]["labels"])}


def matches(selector, labels):
    """Of a label selector with matchLabels and `In` expressions."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    wanted = selector.get("matchLabels", {}).items()
    for each in selector.get("matchExpressions", ()):
        assert each["operator"] == "In"
        if labels.get(each["key"]) not in each["values"]:
            return False
    return wanted <= labels.items()


def ports(template):
    """Number by name of a pod's named ports."""
    return {
        port["name"]: port["containerPort"] for each in containers(template) for port in each.get("ports", ())
    }


def memory(text):
    """Bytes of a quantity such as 1536Mi."""
    units = {"Mi": 2**20, "Gi": 2**30, "Ki": 2**10}
    return int(text[:-2]) * units[text[-2:]]


def processors(text):
    return int(text[:-1]) / 1000 if text.endswith("m") else float(text)
