"""The Role that is shipped allows what the tool asks for, and nothing else."""

import json
from pathlib import Path

import pytest
import yaml
from api_server import Asked
from cluster_objects import condition, job, pod, put_services, terminated, waiting

from trainer.cluster import following

K8S = Path(__file__).parents[3] / "k8s"
TOML = K8S / "base/ppo.toml"
NAME = "plaudit-run-nightly"


@pytest.fixture
def access():
    """Objects of k8s/components/operator-access by kind."""
    text = (K8S / "components/operator-access/access.yaml").read_text(encoding="utf-8")
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


@pytest.fixture
def role(server, access):
    """The Role, which the API server holds every request to from now on."""
    server.rules = access["Role"]["rules"]
    return server.rules


def everything(run, server, clock, monkeypatch):
    """Each command, and each kind of request that it can come to."""
    sets = put_services(server, policy={"ready": 0})
    server.put(
        "pods", pod(sets["policy"], "late", phase="Pending", status=waiting("ContainerCreating"), ready=False)
    )
    assert run("wait", "--timeout", "1s")[0] == 75
    server.put("jobs", job("plaudit-trainer", "trainer"))
    assert run("status")[0] == 0
    monkeypatch.setattr(following, "ASK_S", 0.2)
    server.logs["a"] = [["2026-01-01T00:00:01Z a step"]]

    def works():
        server.put("pods", pod(server.objects["jobs", NAME], "a", ip="127.0.0.1", port=9))

    def fails():
        each = server.objects["jobs", NAME]
        each["status"] = {"conditions": [condition("Failed")]}
        server.put("pods", pod(each, "a", phase="Failed", ready=False, status=terminated(70)))

    clock.steps += [works, fails]
    assert run("submit", TOML, "--name", "nightly", "--follow")[0] == 70
    clock.steps += [lambda: server.remove("pods", "a"), lambda: server.remove("jobs", NAME)]
    assert run("resume", "nightly")[0] == 0


def test_the_role_allows_exactly_what_is_asked(run, server, clock, monkeypatch, role):
    everything(run, server, clock, monkeypatch)
    allowed = {
        Asked(verb, group, resource)
        for rule in role
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert set(server.asked) == allowed


@pytest.mark.parametrize("number", range(6))
def test_without_any_of_its_rules_something_is_refused(run, server, clock, monkeypatch, role, number):
    """That the API server of the tests holds requests to the Role at all."""
    server.rules = role[:number] + role[number + 1 :]
    assert len(role) == 6
    with pytest.raises(AssertionError):
        everything(run, server, clock, monkeypatch)


def test_the_role_names_no_wildcard_and_nothing_of_the_cluster(access):
    assert access.keys() == {"Role", "ServiceAccount", "RoleBinding"}
    assert "*" not in json.dumps(access)
    assert access["RoleBinding"]["roleRef"]["name"] == access["Role"]["metadata"]["name"]
    (subject,) = access["RoleBinding"]["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": access["ServiceAccount"]["metadata"]["name"]}
