"""Every overlay and combination of components renders, is what the cluster's schemas say, and is labelled."""

import copy
import functools
import json
import os
import pkgutil
import re

import pytest
import yaml
from manifests import (
    ALL,
    BASES,
    COMPONENT,
    COMPONENTS,
    K8S,
    OTHER_TRAINERS,
    OVERLAYS,
    PART,
    SCENES,
    VERSION,
    containers,
    kustomize,
    named,
    objects,
    of_kind,
    reference,
    rendered,
    templates,
)

import plaudit

OLDEST, NEWEST = "1.33", "1.37"


CUSTOM = {
    "Certificate": "cloudcoil.models.cert_manager.v1:Certificate",
    "Issuer": "cloudcoil.models.cert_manager.v1:Issuer",
    "ScaledObject": "cloudcoil.models.keda.v1alpha1:ScaledObject",
    "PodMonitor": "cloudcoil.models.prometheus_operator.v1:PodMonitor",
    "PrometheusRule": "cloudcoil.models.prometheus_operator.v1:PrometheusRule",
    "JobSet": "kubeflow_trainer_api.models.jobset_v1alpha2_job_set:JobsetV1alpha2JobSet",
    "TrainJob": "kubeflow_trainer_api.models.trainer_v1alpha1_train_job:TrainerV1alpha1TrainJob",
    "TrainingRuntime": (
        "kubeflow_trainer_api.models.trainer_v1alpha1_training_runtime:TrainerV1alpha1TrainingRuntime"
    ),
}
"""Kinds of other projects, and their published models; who needs one imports it, which takes seconds."""
ROUTES = ("GRPCRoute", "HTTPRoute", "BackendTLSPolicy")
CLUSTER_WIDE = ("Namespace", "PriorityClass")


def as_read(each):
    """An object as the published model of its kind reads it, less what that doesn't know."""
    model = pkgutil.resolve_name(CUSTOM[each["kind"]])
    if hasattr(model, "from_dict"):
        return model.from_dict(each).to_dict()
    return model.model_validate(each).model_dump(by_alias=True, exclude_none=True, mode="json")


@functools.cache
def validated(text, version):
    """Several combinations hold the same objects; once is enough."""
    import kubernetes_validate  # seconds, in every worker that only looks which tests there are

    kubernetes_validate.validate(json.loads(text), version, strict=True)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("scene", SCENES)
def test_objects_are_valid_to_the_letter_on_the_oldest_and_the_newest_minor(scene, version):
    for each in objects(scene):
        if each["kind"] not in CUSTOM and each["kind"] not in ROUTES:
            validated(json.dumps(each), version)


def test_a_misspelt_field_would_be_found():
    each = copy.deepcopy(named(objects("cpu"), "Deployment", "plaudit-policy"))
    container = each["spec"]["template"]["spec"]["containers"][0]
    container["readinesProbe"] = container.pop("readinessProbe")
    from kubernetes_validate import ValidationError  # as in validated()

    with pytest.raises(ValidationError, match="readinesProbe"):
        validated(json.dumps(each), NEWEST)


@pytest.mark.parametrize("scene", SCENES)
def test_objects_of_other_projects_have_no_field_that_their_models_lack(scene):
    for each in of_kind(objects(scene), *CUSTOM):
        assert keeps(as_read(each), each), reference(each)


def test_a_misspelt_field_of_another_project_would_be_found():
    each = copy.deepcopy(named(objects("production"), "ScaledObject", "plaudit-reward"))
    each["spec"]["minReplicas"] = each["spec"].pop("minReplicaCount")
    assert not keeps(as_read(each), each)


def keeps(read, written):
    """Whether all that was written was read; a model may add defaults, and leave out what is empty."""
    if isinstance(written, dict):
        return all(keeps(read.get(key, {}), each) for key, each in written.items())
    if isinstance(written, list):
        return len(read) == len(written) and all(map(keeps, read, written))
    return read == written


def test_routes_have_the_shape_of_the_gateway_api():
    """No package carries its schemas whole, so the few fields that are used are held here."""
    for each in of_kind(objects("production"), "GRPCRoute", "HTTPRoute"):
        assert each["apiVersion"] == "gateway.networking.k8s.io/v1"
        assert each["spec"].keys() == {"parentRefs", "hostnames", "rules"}
        assert all(parent.keys() == {"name", "namespace"} for parent in each["spec"]["parentRefs"])
        for rule in each["spec"]["rules"]:
            assert rule.keys() == {"matches", "backendRefs"}
            assert all(to.keys() == {"name", "port"} for to in rule["backendRefs"])
            for match in rule["matches"]:
                kind, what = {"GRPCRoute": ("method", {"service"}), "HTTPRoute": ("path", {"type", "value"})}[
                    each["kind"]
                ]
                assert match.keys() == {kind} and match[kind].keys() == what


def test_the_gateway_trusts_the_ca_for_the_name_of_the_service():
    production = objects("production")
    (certificate,) = (each for each in of_kind(production, "Certificate") if "dnsNames" in each["spec"])
    policies = of_kind(production, "BackendTLSPolicy")
    assert {each["apiVersion"] for each in policies} == {"gateway.networking.k8s.io/v1"}
    asked = {to["name"] for each in of_kind(production, "GRPCRoute", "HTTPRoute")
             for rule in each["spec"]["rules"] for to in rule["backendRefs"]}  # fmt: skip
    assert {target["name"] for each in policies for target in each["spec"]["targetRefs"]} == asked
    for each in policies:
        (target,) = each["spec"]["targetRefs"]
        assert target == {"group": "", "kind": "Service", "name": each["spec"]["validation"]["hostname"]}
        assert target["name"] in certificate["spec"]["dnsNames"]


@pytest.mark.parametrize("components", [BASES[name][1] for name in BASES if name.startswith("everything")])
def test_the_order_of_components_does_not_matter(components):
    def by_name(found):
        return {reference(each): normal(each) for each in found}

    others = tuple(each for each in components[::-1] if each not in OTHER_TRAINERS)
    last = tuple(each for each in components if each in OTHER_TRAINERS)
    assert by_name(rendered("base", components)) == by_name(rendered("base", others + last))


def normal(value):
    """Lists of named things, which Kubernetes merges by name, in one order; arguments too."""
    if isinstance(value, dict):
        return {key: normal(each) for key, each in value.items()}
    if isinstance(value, list):
        return sorted((normal(each) for each in value), key=str)
    return value


def test_every_component_is_in_a_combination():
    assert set(COMPONENTS) == {name for _, names in BASES.values() for name in names}
    others = {
        "autoscaling-hpa",
        "autoscaling-keda",
        "monitoring",
        "jobset",
        "trainjob",
        "fetched-models",
        "oci-models",
        "tls",
        "backend-tls",
        "tokens",
    }
    assert {*others, *ALL} == set(COMPONENTS)


@pytest.mark.parametrize("scene", SCENES)
def test_every_object_has_all_labels_and_the_namespace(scene):
    for each in objects(scene):
        labels = each["metadata"]["labels"]
        assert labels[COMPONENT], reference(each)
        assert labels | standard_labels() == labels, reference(each)
        namespace = None if each["kind"] in CLUSTER_WIDE else "plaudit"
        assert each["metadata"].get("namespace") == namespace, reference(each)


@pytest.mark.parametrize("scene", SCENES)
def test_every_pod_has_all_labels_and_no_selector_holds_the_version(scene):
    for name, template in templates(objects(scene)):
        labels = template["metadata"]["labels"]
        assert labels[COMPONENT] and labels | standard_labels() == labels, name
    for each in of_kind(objects(scene), "Deployment"):
        assert each["spec"]["selector"]["matchLabels"].keys() == {PART, COMPONENT}


def standard_labels():
    return {
        PART: "plaudit",
        "app.kubernetes.io/instance": "plaudit",
        "app.kubernetes.io/version": VERSION,
        "app.kubernetes.io/part-of": "plaudit",
        "app.kubernetes.io/managed-by": "kustomize",
    }


def test_the_version_is_plaudits_everywhere():
    assert plaudit.__version__ == VERSION
    for path in K8S.rglob("*.yaml"):
        for found in re.findall(r"image: plaudit(?:-\w+)?:([\w.-]+)", path.read_text(encoding="utf-8")):
            assert found == VERSION, path


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_pinned_and_taken_from_the_node_if_they_are_there(overlay):
    tag = "0.1.0-cuda" if overlay == "gpu" else VERSION
    for name, template in templates(objects(overlay)):
        for container in containers(template):
            assert container["image"] == f"{image_of(template, overlay)}:{tag}", name
            assert container["imagePullPolicy"] == "IfNotPresent", name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_of_ones_own_sets_the_images_everywhere(overlay, tmp_path):
    here = os.path.relpath(K8S / "overlays" / overlay, tmp_path.resolve())
    team = "registry.example.com/team"
    images = [
        {"name": name, "newName": f"{team}/{name}", "newTag": "7"} for name in ("plaudit", "plaudit-gateway")
    ]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [here], "images": images}))
    for name, template in templates(kustomize(tmp_path)):
        for container in containers(template):
            assert container["image"] == f"{team}/{image_of(template, overlay)}:7", name


def image_of(template, overlay):
    is_light = overlay == "production" and template["metadata"]["labels"][COMPONENT] == "gateway"
    return "plaudit-gateway" if is_light else "plaudit"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_names_that_others_rely_on(overlay):
    found = objects(overlay)
    assert named(found, "Namespace", "plaudit")
    for name in ("policy", "reward", "reference", "gateway"):
        assert named(found, "Deployment", f"plaudit-{name}") and named(found, "Service", f"plaudit-{name}")
    assert named(found, "Job", "plaudit-trainer")


@pytest.mark.parametrize("overlay", ["local", "cpu", "gpu"])
def test_a_bare_cluster_takes_it(overlay):
    """No kind that a CRD brings."""
    kinds = {each["kind"] for each in objects(overlay)}
    assert not kinds & {*CUSTOM, *ROUTES}
