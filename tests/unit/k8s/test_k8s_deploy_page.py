"""docs/deploy.md names what is there, and what it says of sizes and versions is so."""

import json
import os
import re
import shlex

import pytest
import yaml
from manifests import (
    COMPONENT,
    COMPONENTS,
    K8S,
    OVERLAYS,
    ROOT,
    containers,
    kustomize,
    load,
    named,
    objects,
    of_kind,
    ports,
    templates,
)
from test_k8s_renders import NEWEST, OLDEST, validated

PAGE = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", "").splitlines()]


def words(command):
    return shlex.split(command, comments=True)


def test_every_component_is_in_the_table():
    table = PAGE.partition("## Components")[2].partition("\n\nAn overlay")[0]
    assert tuple(sorted(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE))) == COMPONENTS


def test_every_overlay_is_named():
    assert all(f"k8s/overlays/{name}" in PAGE or f"`{name}`" in PAGE for name in OVERLAYS)


@pytest.mark.parametrize("command", [each for each in COMMANDS if "k8s/" in each])
def test_paths_in_commands_are_there(command):
    for word in words(command):
        if word.startswith("k8s/"):
            assert (ROOT / word).exists()


def test_objects_in_commands_are_there():
    """`job/plaudit-models`, `deployment/plaudit-reward` and the like."""
    there = {(each["kind"].lower(), each["metadata"]["name"]) for each in objects("local")}
    asked = {
        tuple(match)
        for command in COMMANDS
        for match in re.findall(r"\b(job|deployment|service)[/ ](plaudit-[\w-]+)", command)
    }
    assert asked and asked <= there


@pytest.mark.parametrize("tool", ["kind", "k3d", "minikube"])
def test_every_image_is_loaded_into_the_cluster(tool):
    loads = [words(each) for each in COMMANDS if re.match(rf"{tool} (image )?(load|import) ", each)]
    loaded = {word for command in loads for word in command if ":" in word}
    assert loaded == images(objects("local"))


def images(found):
    return {each["image"] for _, template in templates(found) for each in containers(template)}


def test_the_images_of_ones_own_registry_are_all_named():
    (command,) = re.findall(r"kustomize edit set image ((?:\S+=\S+|\\\s+|\s)+)", PAGE)
    overlay = yaml.safe_load((K8S / "overlays/cpu/kustomization.yaml").read_text(encoding="utf-8"))
    renamed = dict(each.split("=") for each in command.replace("\\", " ").split())
    assert renamed.keys() == {each["name"] for each in overlay["images"]}
    assert all(f"registry.example.com/{name}" in image for name, image in renamed.items())


def test_ports_in_commands_are_open():
    for command in COMMANDS:
        if "port-forward" in command:
            *_, what, numbers = re.split(r" (\w+/[\w-]+) ", command)
            kind, _, name = what.partition("/")
            each = named(objects("local"), kind.capitalize(), name)
            asked = {int(number.rpartition(":")[2]) for number in numbers.split()}
            assert asked <= open_ports(each), command


def open_ports(each):
    if each["kind"] == "Service":
        return {port["port"] for port in each["spec"]["ports"]}
    return set(ports(each["spec"]["template"]).values())


def test_the_selector_of_the_first_apply_takes_namespace_and_volume():
    (command,) = (each for each in COMMANDS if "-l 'app.kubernetes.io" in each)
    components = re.search(r"in \((.*)\)", command)[1].split(", ")
    taken = [each for each in objects("cpu") if each["metadata"]["labels"][COMPONENT] in components]
    assert {(each["kind"], each["metadata"]["name"]) for each in taken} == {
        ("Namespace", "plaudit"),
        ("PersistentVolumeClaim", "plaudit-models"),
    }


def test_versions_are_those_that_are_tried():
    assert f"Kubernetes {OLDEST} to {NEWEST}" in PAGE
    import kubernetes_validate  # seconds, in every worker that only looks which tests there are

    assert kubernetes_validate.latest_version().startswith(f"{NEWEST}.")


def of_ones_own(scratch, overlay):
    """The objects of the page's kustomization that has an overlay as its resource."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (text,) = (each for each in blocks if f"resources: [../plaudit/k8s/overlays/{overlay}]" in each)
    own = text.replace("../plaudit/k8s", os.path.relpath(K8S, scratch.resolve()))
    (scratch / "kustomization.yaml").write_text(own)
    return kustomize(scratch)


def test_the_overlay_of_ones_own_renders(tmp_path):
    found = of_ones_own(tmp_path, "production")
    assert all(image.startswith("registry.example.com/plaudit") for image in images(found))
    for each in of_kind(found, "GRPCRoute", "HTTPRoute"):
        assert each["spec"]["hostnames"] == ["scores.example.com"]
        assert each["spec"]["parentRefs"] == [{"name": "edge", "namespace": "gateways"}]


def test_the_overlay_that_fetches_its_models_renders(tmp_path):
    found = of_ones_own(tmp_path, "cpu")
    pods = [template["spec"] for _, template in templates(found)]
    arguments = [each["args"] for pod in pods for each in pod.get("initContainers", ())]
    assert arguments == 4 * [["https://models.example.com/plaudit-models.tar", "0" * 64]]
    assert [each["metadata"]["name"] for each in of_kind(found, "PersistentVolumeClaim")] == ["plaudit-runs"]


# --- k8s/load-models.yaml


def loader():
    (pod,) = load((K8S / "load-models.yaml").read_text(encoding="utf-8"))
    return pod


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_the_pod_to_copy_through_is_valid(version):
    validated(json.dumps(loader()), version)


def test_it_is_as_restricted_as_those_that_read_and_writes_the_models_only():
    pod = loader()["spec"]
    other = named(objects("cpu"), "Deployment", "plaudit-reward")["spec"]["template"]["spec"]
    assert pod["securityContext"] == other["securityContext"]
    (container,), (theirs,) = pod["containers"], other["containers"]
    assert container["securityContext"] == theirs["securityContext"]
    assert container["image"] == theirs["image"]
    assert container["volumeMounts"] == [{"name": "models", "mountPath": "/models"}]
    claim = pod["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert named(objects("cpu"), "PersistentVolumeClaim", claim)


def test_no_service_and_no_policy_takes_it_for_one_of_ours():
    labels = loader()["metadata"]["labels"]
    for each in of_kind(objects("production"), "Service"):
        assert not each["spec"]["selector"].items() <= labels.items()


def test_the_pod_to_copy_through_is_labelled_as_all_are():
    volume = named(objects("cpu"), "PersistentVolumeClaim", "plaudit-models")["metadata"]["labels"]
    own = {"app.kubernetes.io/name": "load-models", "app.kubernetes.io/managed-by": "kubectl"}
    assert loader()["metadata"]["labels"] == volume | own
