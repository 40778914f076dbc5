"""compose.yaml runs what the local overlay runs, for people without a cluster."""

import pytest
import yaml
from manifests import ROOT, command, named, objects, of_kind, templates
from test_k8s_commands import parsed

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
LOG_FORMAT = "log_format"


def in_the_cluster():
    """Command lines of the local overlay, by the name that compose gives the service."""
    found = {}
    for _, template in templates(objects("local")):
        (container,) = template["spec"]["containers"]
        component = template["metadata"]["labels"]["app.kubernetes.io/component"]
        found["models" if component == "models" else f"plaudit-{component}"] = container
    return found


def test_it_has_the_pods_of_the_cluster():
    assert SERVICES.keys() == in_the_cluster().keys()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_what_its_pod_runs(name):
    pod = in_the_cluster()[name]
    ours, theirs = parsed(SERVICES[name]["command"]), parsed(command(pod))
    for values in (ours, theirs):
        values.pop(LOG_FORMAT, None)  # people read these logs
    if name == "plaudit-trainer":
        policy = parsed(SERVICES["plaudit-policy"]["command"])["address"].replace("0.0.0.0", "plaudit-policy")
        assert ours.pop("set_") == (f"services.policy=['{policy}']",)  # there is no cluster to ask
        theirs.pop("set_")
    assert ours == theirs
    assert SERVICES[name]["image"] == pod["image"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_may_as_little_as_its_pod(name):
    service = SERVICES[name]
    assert service["user"] == "10001:10001" and service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert any(each.startswith("/tmp:size=") for each in service["tmpfs"])
    assert service["env_file"] == "k8s/base/environment.env"


def test_the_image_is_built_once():
    built = {each["image"]: each["build"] for each in SERVICES.values() if "build" in each}
    assert built == {"plaudit:0.1.0": "."}
    assert built.keys() == {each["image"] for each in SERVICES.values()}


@pytest.mark.parametrize("name", SERVICES)
def test_only_this_machine_reaches_it(name):
    """Nothing asks for a token here."""
    for published in SERVICES[name].get("ports", ()):
        assert published.startswith("127.0.0.1:")
        _, outside, inside = published.split(":")
        assert outside == inside


def test_published_ports_differ():
    outside = [each.split(":")[1] for service in SERVICES.values() for each in service.get("ports", ())]
    assert len(set(outside)) == len(outside)


def test_health_is_asked_at_the_services_own_address():
    for name, service in SERVICES.items():
        if name.startswith("plaudit-") and name != "plaudit-trainer":
            port = parsed(service["command"])["address"].rpartition(":")[2]
            assert f"localhost:{port}" in service["healthcheck"]["test"][-1]


def test_all_wait_for_the_models_and_the_trainer_for_the_services():
    for name, service in SERVICES.items():
        waits = service.get("depends_on", {})
        if name == "models":
            assert not waits
        elif name == "plaudit-trainer":
            asked = {"plaudit-policy", "plaudit-reward", "plaudit-reference"}
            assert waits.keys() == asked
            assert {each["condition"] for each in waits.values()} == {"service_healthy"}
        else:
            assert waits == {"models": {"condition": "service_completed_successfully"}}


def test_stops_are_as_patient_as_in_the_cluster():
    seconds = {"s": 1, "m": 60}
    for each in of_kind(objects("local"), "Deployment"):
        period = SERVICES[each["metadata"]["name"]]["stop_grace_period"]
        expected = each["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert int(period[:-1]) * seconds[period[-1]] == expected
    job = named(objects("local"), "Job", "plaudit-trainer")["spec"]["template"]["spec"]
    period = SERVICES["plaudit-trainer"]["stop_grace_period"]
    assert int(period[:-1]) * seconds[period[-1]] == job["terminationGracePeriodSeconds"]


def test_volumes_and_files_are_there():
    for service in SERVICES.values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).is_file()
