"""What every pod must be: Pod Security "restricted", read-only, sized, and drained before it is killed."""

import pytest
from manifests import (
    COMPONENT,
    SCENES,
    SERVING,
    command,
    containers,
    memory,
    named,
    objects,
    of_kind,
    option,
    processors,
    reference,
    templates,
)

from services.rpc import server
from trainer.ppo.run_sections import ServicesSection

USER = 10001
WRITABLE = {"/tmp", "/runs", "/dev/shm", "/vllm"}


@pytest.fixture(params=SCENES)
def found(request):
    return objects(request.param)


def test_pods_pass_pod_security_restricted(found):
    for name, template in templates(found):
        spec = template["spec"]
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}, name
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == USER
        assert context["fsGroupChangePolicy"] == "OnRootMismatch"
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        kinds = {kind for volume in spec["volumes"] for kind in volume.keys() - {"name"}}
        claims = {"persistentVolumeClaim", "ephemeral"}
        assert kinds <= {"emptyDir", "configMap", *claims, "image", "secret"}, name


def test_containers_pass_pod_security_restricted(found):
    for name, template in templates(found):
        for container in containers(template):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert all("hostPort" not in port for port in container.get("ports", ()))


def test_the_namespace_enforces_it(found):
    (namespace,) = of_kind(found, "Namespace")
    labels = namespace["metadata"]["labels"]
    assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "warn", "audit")} == {
        "restricted"
    }


def test_containers_write_only_where_they_may(found):
    """A read-only root with sized scratch space; models are written by what makes or fetches them alone."""
    for name, template in templates(found):
        makes_models = template["metadata"]["labels"][COMPONENT] == "models"
        for container in containers(template):
            mounts = container["volumeMounts"]
            writable = {mount["mountPath"] for mount in mounts if not mount.get("readOnly")}
            gets_models = makes_models or container["name"] == "fetch-models"
            assert writable <= WRITABLE | ({"/models"} if gets_models else set()), name
        for volume in template["spec"]["volumes"]:
            if "emptyDir" in volume:
                assert volume["emptyDir"]["sizeLimit"], name
            if volume["name"] == "models" and "persistentVolumeClaim" in volume and not makes_models:
                assert volume["persistentVolumeClaim"]["readOnly"], name


def test_caches_are_written_to_scratch_space(found):
    """HF_HOME and the like are below a mounted, writable folder."""
    (config,) = (each for each in of_kind(found, "ConfigMap") if "environment" in each["metadata"]["name"])
    settings = {key: value for key, value in config["data"].items() if key != "PLAUDIT_ROOTS"}
    folders = [value for value in settings.values() if value.startswith("/")]
    assert len(folders) == 4 and all(folder == "/tmp" or folder.startswith("/tmp/") for folder in folders)
    for name, template in templates(found):
        for container in template["spec"]["containers"]:
            assert {"configMapRef": {"name": config["metadata"]["name"]}} in container["envFrom"], name
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_only_the_trainer_has_a_token_of_the_cluster(found):
    assert not of_kind(found, "ClusterRole")
    for each in of_kind(found, "ServiceAccount"):
        assert each["automountServiceAccountToken"] is False
    for name, template in templates(found):
        is_trainer = template["metadata"]["labels"][COMPONENT] == "trainer"
        assert template["spec"]["automountServiceAccountToken"] is is_trainer, name


def test_the_trainer_may_do_what_it_does_and_no_more(found):
    """trainer.cluster: endpoints lists and watches, lease reads, creates and replaces one Lease."""
    role = named(found, "Role", "plaudit-trainer")
    allowed = {
        (resource, verb, *rule.get("resourceNames", ()))
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    lease = "plaudit-policy-trainer"
    assert allowed == {
        ("endpointslices", "list"),
        ("endpointslices", "watch"),
        ("leases", "create"),
        ("leases", "get", lease),
        ("leases", "update", lease),
    }
    binding = named(found, "RoleBinding", "plaudit-trainer")
    assert binding["roleRef"]["name"] == "plaudit-trainer"
    assert [each["name"] for each in binding["subjects"]] == ["plaudit-trainer"]


def test_pods_see_no_environment_of_services_and_keep_their_last_words(found):
    for name, template in templates(found):
        assert template["spec"]["enableServiceLinks"] is False, name
        for container in template["spec"]["containers"]:
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError", name


def test_resources_are_stated_and_memory_is_not_overcommitted(found):
    for name, template in templates(found):
        for container in containers(template):
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert processors(requests["cpu"]) <= processors(limits["cpu"])
            if "Job plaudit-models" not in name:  # runs while those that wait for it use nothing
                assert requests["memory"] == limits["memory"], name
            assert memory(requests["memory"]) <= memory(limits["memory"])


def test_threads_are_the_processors_of_the_limit(found):
    for name, template in templates(found):
        for container in template["spec"]["containers"]:
            (threads,) = (each for each in container["env"] if each["name"] == "OMP_NUM_THREADS")
            assert threads["valueFrom"] == {"resourceFieldRef": {"resource": "limits.cpu"}}, name


def test_replicas_are_spread_over_nodes(found):
    for name, template in templates(found):
        if not name.startswith(("Deployment", "Job plaudit-models")):
            continue
        (spread,) = template["spec"]["topologySpreadConstraints"]
        assert spread["topologyKey"] == "kubernetes.io/hostname", name
        assert spread["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        assert COMPONENT in spread["matchLabelKeys"]


def test_pods_rank_serving_above_training(found):
    ranks = {each["metadata"]["name"]: each["value"] for each in of_kind(found, "PriorityClass")}
    assert ranks["plaudit-serving"] > ranks["plaudit-training"] > 0
    for name, template in templates(found):
        rank = "plaudit-serving" if name.startswith("Deployment") else "plaudit-training"
        assert template["spec"]["priorityClassName"] == rank, name


def test_a_server_is_killed_only_after_its_drain(found):
    """preStop, then --grace for calls, then what the shell gives threads to end."""
    shell = server._FLUSH_S + server._THREADS_S
    for each in of_kind(found, "Deployment"):
        (container,) = each["spec"]["template"]["spec"]["containers"]
        pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pause >= 5, "endpoints take seconds to spread"
        grace = float(option(container, "grace"))
        is_called = each["metadata"]["name"] != "plaudit-gateway"  # by a trainer
        longest = ServicesSection.model_fields["call_timeout"].default
        assert not is_called or grace >= longest, "of a trainer's calls"
        drain = pause + grace + shell
        assert each["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > drain, reference(each)


def test_the_trainer_gets_the_time_of_a_call_and_a_checkpoint(found):
    for name, template in templates(found):
        if template["metadata"]["labels"][COMPONENT] == "trainer":
            longest = ServicesSection.model_fields["call_timeout"].default
            assert template["spec"]["terminationGracePeriodSeconds"] >= 2 * longest, name


def test_a_rollout_waits_for_as_long_as_a_pod_may_start(found):
    for each in of_kind(found, "Deployment"):
        (container,) = each["spec"]["template"]["spec"]["containers"]
        probe = container["startupProbe"]
        starting = probe.get("periodSeconds", 10) * probe["failureThreshold"]
        assert each["spec"].get("progressDeadlineSeconds", 600) > starting, reference(each)
        assert all(
            "initialDelaySeconds" not in container[kind] for kind in container if kind.endswith("Probe")
        )


def test_rollouts_need_no_spare_gpu_and_lose_no_replica_without(found):
    for each in of_kind(found, "Deployment"):
        (container,) = each["spec"]["template"]["spec"]["containers"]
        gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        expected = {"maxSurge": 0, "maxUnavailable": 1} if gpu else {"maxSurge": 1, "maxUnavailable": 0}
        assert each["spec"]["strategy"] == {"rollingUpdate": expected}, reference(each)


def test_gpu_pods_tolerate_gpu_nodes_and_have_shared_memory():
    for name, template in templates(objects("gpu")):
        (container,) = template["spec"]["containers"]
        wanted = template["metadata"]["labels"][COMPONENT] != "gateway"
        assert (container["resources"]["limits"].get("nvidia.com/gpu") == 1) is wanted, name
        assert ("tolerations" in template["spec"]) is wanted
        assert any(mount["mountPath"] == "/dev/shm" for mount in container["volumeMounts"]) is wanted
        assert any("cuda" in each for each in command(container)) is wanted


def test_autoscaled_deployments_leave_their_replicas_to_the_autoscaler(found):
    scaled = {
        each["spec"]["scaleTargetRef"]["name"]
        for each in of_kind(found, "ScaledObject", "HorizontalPodAutoscaler")
    }
    for each in of_kind(found, "Deployment"):
        assert ("replicas" in each["spec"]) is (each["metadata"]["name"] not in scaled), reference(each)


def test_production_has_several_of_what_serves():
    production = objects("production")
    for each in of_kind(production, "ScaledObject"):
        assert 2 <= each["spec"]["minReplicaCount"] < each["spec"]["maxReplicaCount"]
    assert named(production, "Deployment", "plaudit-gateway")["spec"]["replicas"] >= 2


def test_production_shows_nobody_its_insides():
    for scene in ("production", "production+gpu"):
        production = objects(scene)
        closed = {
            name
            for name, pod in templates(production)
            if "--no-reflection" in command(pod["spec"]["containers"][0])
        }
        assert closed == {*(f"Deployment plaudit-{name}" for name in SERVING), "Job plaudit-trainer"}, scene


def test_production_knows_callers_by_digests_and_not_by_a_token_that_opens_all():
    for _, pod in templates(objects("production")):
        name = pod["metadata"]["labels"][COMPONENT]
        secrets = {each["secret"]["secretName"] for each in pod["spec"]["volumes"] if "secret" in each}
        own = {"plaudit-callers"} if name in ("gateway", "trainer") else set()
        assert secrets == {"plaudit-tls", "plaudit-tokens", *own}
        assert "--tokens=/tokens/tokens.toml" in command(pod["spec"]["containers"][0]), name
