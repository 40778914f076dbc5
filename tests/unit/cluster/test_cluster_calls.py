"""Requests: each has a deadline, is tried again where that can do no harm, and ends in a typed error."""

import pytest
from api_server import NAMESPACE, Refusal
from cluster_objects import job, labels

from trainer.cluster import api, calls
from trainer.cluster.api import connect
from trainer.cluster.calls import Cluster
from trainer.cluster.errors import ApiRefused, ApiUnreachable, FieldsTaken, NotAllowed, NotThere
from trainer.errors import ConfigError

OURS = "app.kubernetes.io/part-of=plaudit"
MAP = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "a", "namespace": NAMESPACE},
    "data": {"k": "v"},
}


def config_map(name):
    return {"metadata": {"name": name, "labels": labels("trainer")}}


@pytest.fixture
def impatient(monkeypatch):
    """A request waits a twentieth of a second for the server."""
    monkeypatch.setattr(calls, "REQUEST_S", 0.05)
    monkeypatch.setattr(calls, "WATCH_S", 0)
    monkeypatch.setattr(calls, "LOG_S", 0.05)


# --- the way there


def test_a_kubeconfig_gives_the_server_and_the_account(cluster, server):
    server.put("configmaps", config_map("a"))
    assert [each["metadata"]["name"] for each in cluster.find("ConfigMap", labels=OURS)] == ["a"]
    assert server.accounts == {"Bearer secret"}


def test_another_context_is_another_server(kubeconfig, clock):
    with pytest.raises(ApiUnreachable, match=r"http://127.0.0.1:9: list Pod: .*refused"):
        Cluster(connect("nobody"), NAMESPACE, clock).find("Pod")


def test_a_certificate_that_is_none(kubeconfig, clock):
    with pytest.raises(ApiUnreachable, match="list Pod: SSLError"):
        Cluster(connect("tls"), NAMESPACE, clock).find("Pod")


def test_a_context_that_is_not_there(kubeconfig):
    with pytest.raises(ConfigError, match=r"--context: .*elsewhere.*KUBECONFIG"):
        connect("elsewhere")


def test_a_pod_uses_its_own_account(kubeconfig, tmp_path, monkeypatch):
    for name, text in (("namespace", "team-a\n"), ("token", "of-the-pod"), ("ca.crt", "ca")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(api, "NAMESPACE_FILE", tmp_path / "namespace")
    for name, file in (("TOKEN", "token"), ("CERT", "ca.crt")):
        place = f"kubernetes.config.incluster_config.SERVICE_{name}_FILENAME"
        monkeypatch.setattr(place, str(tmp_path / file))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr("kubernetes.client.rest.urllib3.PoolManager", lambda **options: None)
    found = connect().configuration
    assert found.host == "https://10.0.0.1:443" and "of-the-pod" in found.api_key["BearerToken"]
    assert api.own_namespace() == "team-a"
    assert connect("here").configuration.host.startswith("http://127.0.0.1"), "a context comes first"


# --- what passes by itself


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_asked_again(cluster, server, clock, status):
    server.put("configmaps", config_map("a"))
    server.fail("list", "configmaps", Refusal(status, "busy"), times=2)
    assert len(cluster.find("ConfigMap")) == 1
    assert clock.slept == [0.5, 1.0]


def test_a_server_says_when_it_wants_to_be_asked_again(cluster, server, clock):
    server.fail("get", "jobs", Refusal(429, "busy", {"Retry-After": "3"}))
    assert cluster.get("Job", "a") is None
    assert clock.slept == [3.0]


def test_but_not_for_ever(cluster, server, clock):
    server.fail("get", "jobs", Refusal(429, "busy", {"Retry-After": "3600"}), times=100)
    with pytest.raises(ApiUnreachable, match="get Job a: busy"):
        cluster.get("Job", "a")
    assert clock.slept == [10.0, 10.0, 10.0]


def test_tries_are_counted(cluster, server, clock):
    server.fail("list", "pods", Refusal(503, "etcd is away"), times=100)
    with pytest.raises(ApiUnreachable, match="list Pod: etcd is away") as caught:
        cluster.find("Pod")
    assert caught.value.exit_code == 69
    assert clock.slept == list(calls.PAUSES_S)


@pytest.mark.parametrize(
    ("verb", "resource"), [("list", "jobs"), ("get", "jobs"), ("patch", "configmaps"), ("delete", "jobs")]
)
def test_a_connection_that_breaks_is_made_again(cluster, server, verb, resource):
    each = server.put("jobs", job("a", "trainer"))
    server.fail(verb, resource, "reset")
    act = {
        "list": lambda: cluster.find("Job"),
        "get": lambda: cluster.get("Job", "a"),
        "patch": lambda: cluster.apply(MAP),
        "delete": lambda: cluster.delete("Job", "a", each["metadata"]["uid"]),
    }
    act[verb]()
    assert [asked.verb for asked in server.asked if asked.verb != "create"] == [verb, verb]


def test_a_server_that_hangs_ends_in_an_error(cluster, server, impatient):
    server.fail("list", "pods", "hang", times=100)
    with pytest.raises(ApiUnreachable, match=r"list Pod: .*timed out"):
        cluster.find("Pod")


def test_a_server_that_hangs_in_the_midst_of_its_answer(cluster, server, impatient):
    server.fail("get", "pods/log", "stall")
    server.logs["p"] = [["2026-01-01T00:00:01Z one"]]
    assert list(cluster.log("p", "")) == [("2026-01-01T00:00:01Z", "one")]


# --- what doesn't


def test_a_role_that_lacks_something_is_named_with_verb_and_resource(cluster, server):
    server.rules = []
    with pytest.raises(NotAllowed) as caught:
        cluster.find("Pod")
    assert caught.value.exit_code == 77
    assert 'User "ada" cannot list resource "pods" in API group "" in the namespace' in str(caught.value)


def test_an_account_that_is_not_known(cluster, server):
    server.fail("list", "pods", Refusal(401, "Unauthorized"))
    with pytest.raises(NotAllowed, match="log in again"):
        cluster.find("Pod")


def test_a_quota_is_no_lack_of_rights(cluster, server):
    server.fail("patch", "configmaps", Refusal(403, 'configmaps "a" is forbidden: exceeded quota: plaudit'))
    with pytest.raises(ApiRefused, match=r"apply ConfigMap a: .*exceeded quota") as caught:
        cluster.apply(MAP)
    assert caught.value.exit_code == 70


def test_a_namespace_that_is_not_there(cluster, server):
    server.fail("patch", "configmaps", Refusal(404, 'namespaces "plaudit" not found'))
    with pytest.raises(NotThere, match='namespaces "plaudit" not found'):
        cluster.apply(MAP)


def test_fields_of_others_are_not_taken(cluster, server):
    server.put("configmaps", config_map("a"))
    server.managers["configmaps", "a"] = [("kubectl-edit", ".data.k"), ("helm", ".data.j")]
    with pytest.raises(FieldsTaken) as caught:
        cluster.apply(MAP)
    assert "kubectl-edit (.data.k), helm (.data.j)" in str(caught.value)
    assert "--name" in str(caught.value) and caught.value.exit_code == 64


def test_another_conflict_is_told_as_it_is(cluster, server):
    each = server.put("jobs", job("a", "trainer"))
    with pytest.raises(ApiRefused, match="UID in the precondition"):
        cluster.delete("Job", "a", "uid-of-a-former-one")
    assert ("jobs", "a") in server.objects
    cluster.delete("Job", "gone", each["metadata"]["uid"])


def test_a_proxys_page_is_no_answer(cluster, server):
    server.fail("list", "pods", Refusal(200, ""), times=100)
    with pytest.raises(ApiUnreachable, match="list Pod: an answer that is no JSON"):
        cluster.find("Pod")


def test_a_proxy_that_answers_instead(cluster, server):
    server.fail("list", "pods", "html")
    with pytest.raises(ApiRefused, match="list Pod: 418"):
        cluster.find("Pod")


# --- following


def test_what_is_followed_is_told_with_each_change(cluster, server, clock):
    server.put("pods", config_map("a"))
    server.on_watch.append(lambda: (server.put("pods", config_map("b")), server.remove("pods", "a")))
    assert names(cluster, 4) == [["a"], ["a", "b"], ["b"], ["b"]]
    assert clock.slept == [0.0], "the watch has lasted long enough"


def test_objects_of_others_are_left_out(cluster, server):
    server.put("pods", {"metadata": {"name": "foreign", "labels": {}}})
    server.on_watch.append(lambda: server.put("pods", {"metadata": {"name": "too", "labels": {}}}))
    assert names(cluster, 2) == [[], []]


@pytest.mark.parametrize("end", ["drop", "gone", "reset", Refusal(410, "too old"), Refusal(503, "busy")])
def test_a_watch_that_ends_badly_is_begun_anew_with_a_list(cluster, server, clock, end):
    server.put("pods", config_map("a"))
    server.fail("watch", "pods", end)
    server.on_watch.append(lambda: server.remove("pods", "a"))
    seen = names(cluster, 4)
    assert seen[0] == ["a"] and seen[-1] == []
    assert [asked.verb for asked in server.asked][:3] == ["list", "watch", "list"]
    assert clock.slept[0] == (1.0 if isinstance(end, Refusal) or end == "reset" else 0.0)


def test_a_lost_deletion_is_found_by_the_next_list(cluster, server, clock):
    server.put("pods", config_map("a"))
    clock.steps.append(lambda: server.objects.pop(("pods", "a")))
    assert names(cluster, 2) == [["a"], []]


def test_a_watch_hangs_no_longer_than_its_time(cluster, server, impatient):
    server.fail("watch", "pods", "hang")
    assert names(cluster, 2) == [[], []]


def test_a_watch_that_is_not_allowed_is_no_poll(cluster, server):
    server.rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    with pytest.raises(NotAllowed, match="cannot watch"):
        names(cluster, 2)


def names(cluster, times):
    """What is seen the first times."""
    looks = cluster.follow("Pod", labels=OURS)
    return [sorted(each["metadata"]["name"] for each in next(looks)) for _ in range(times)]


# --- logs


def test_a_log_has_times_and_goes_on_from_one(cluster, server):
    server.logs["p"] = [["2026-01-01T00:00:01Z one", "2026-01-01T00:00:02Z two words"]]
    lines = list(cluster.log("p", "2026-01-01T00:00:01Z"))
    assert lines == [("2026-01-01T00:00:01Z", "one"), ("2026-01-01T00:00:02Z", "two words")]
    ((_, _, query),) = server.queries
    assert query["follow"] == "true" and query["sinceTime"] == "2026-01-01T00:00:01Z"


def test_a_log_that_breaks_has_been_read_so_far(cluster, server):
    server.logs["p"] = [["2026-01-01T00:00:01Z one"]]
    server.fail("get", "pods/log", "drop")
    assert list(cluster.log("p", "")) == [("2026-01-01T00:00:01Z", "one")]
