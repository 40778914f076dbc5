"""What the tests in tests/cluster call, without a cluster: it is understood, and its answers are read."""

import itertools
import json
import urllib.parse
import urllib.request

import api_server
import installation
import keep_calling
import pytest
import test_on_a_cluster
import typer

from plaudit import RewardClient
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from services.rpc.options import ServerOptions
from trainer.cluster import __main__ as cluster_command

# --- the caller


@pytest.fixture(scope="module")
def scoring(tiny_reward):
    """A reward server with metrics, and the caller's sums after three calls of it."""
    model = ModelOptions(str(tiny_reward), "cpu", "float32", 1)
    options = ServerOptions("127.0.0.1:0", "127.0.0.1:0")
    with (
        serve_in_background(lambda: reward_service(model), options) as server,
        RewardClient(server.address) as reward,
    ):
        yield server, next(itertools.islice(keep_calling.sums(reward), 2, None))


def test_the_callers_sums_are_of_calls_that_went_well(scoring):
    assert scoring[1] == {"calls": 3, "failed": 0, "well": 3, "last_failures": []}


def test_what_a_reward_pod_has_scored_is_read_from_its_metrics(scoring, monkeypatch):
    with urllib.request.urlopen(f"http://{scoring[0].metrics_address}/metrics", timeout=10) as answer:
        monkeypatch.setattr(installation, "ask", lambda *words: answer.read().decode())
        assert installation.scored("pod-1") == 3


def test_and_of_calls_that_failed():
    with RewardClient("127.0.0.1:9", timeout=0.05) as reward:
        first = next(keep_calling.sums(reward))
    assert (first["calls"], first["failed"], first["well"]) == (1, 1, 0)
    assert "127.0.0.1:9" in first["last_failures"][0]


# --- command lines


COMMANDS = {
    "apply": lambda: installation.apply(installation.manifests()),
    "diff": lambda: installation.differences(installation.manifests()),
    "delete": lambda: installation.delete(installation.manifests()),
    "namespaces": installation.namespaces,
    "left overs": installation.left_overs,
    "pods": lambda: installation.pods("a=b"),
    "kill": lambda: installation.kill("pod-1"),
    "stop": lambda: installation.stop("pod-1"),
    "scale": lambda: installation.scale(3),
    "restart": installation.restart,
    "rollout": installation.rolled_out,
    "metrics": lambda: installation.metrics("pod-1"),
    "query": lambda: installation.has_data("pod-1", "up"),
    "exec": installation.calls,
    "job": lambda: installation.end_of_job("plaudit-trainer"),
    "log": lambda: pytest.fail(installation.attempt("logs", "pod-1", "--container=plaudit").stderr),
    "run": lambda: pytest.fail(installation.privileged_pod().stderr),
    "events": lambda: installation.ask("get", "events", "--field-selector=type=Warning"),
}


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """A kubeconfig of a cluster where nobody listens."""
    path = tmp_path / "kubeconfig"
    path.write_text(api_server.kubeconfig({"here": "http://127.0.0.1:9"}))
    monkeypatch.setenv("KUBECONFIG", str(path))


@pytest.mark.parametrize("name", COMMANDS)
def test_kubectl_understands_every_command_line(name, nobody):
    """It gets as far as asking the cluster."""
    with pytest.raises((AssertionError, pytest.fail.Exception), match="refused"):
        COMMANDS[name]()


@pytest.mark.parametrize(
    "words",
    [
        ["wait", "--until=training", "--timeout=25m"],
        ["wait", "--until=done", "--timeout=30m"],
        ["wait", "--timeout=10m"],
        ["status"],
        ["submit", "ppo.toml", "--name=second"],
    ],
)
def test_the_tool_understands_every_command_line(words):
    group = typer.main.get_command(cluster_command.app)
    values = group.commands[words[0]].make_context("it", words[1:]).params
    assert values["namespace"] == installation.NAMESPACE


def test_the_tool_starts_from_the_checkout():
    done = installation.plaudit_tool("wait", "--timeout=soon")
    assert done.returncode == 64 and "90s, 15m" in done.stderr


# --- how answers are read


def answer(monkeypatch, each):
    """Has kubectl say it."""
    text = each if isinstance(each, str) else json.dumps(each)
    monkeypatch.setattr(installation, "ask", lambda *words: text)


def pod(name, ready="True", **metadata):
    conditions = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": ready}]
    return {"metadata": {"name": name, **metadata}, "status": {"conditions": conditions}}


def test_a_pod_on_its_way_out_is_there_and_not_ready(monkeypatch):
    new = {"metadata": {"name": "new"}, "status": {"phase": "Pending"}}
    going = pod("going", deletionTimestamp="2026-01-01T00:00:00Z")
    answer(monkeypatch, {"items": [pod("well"), pod("loading", "False"), going, new]})
    assert installation.pods("a=b") == {"well": True, "loading": False, "going": False, "new": False}
    assert installation.ready("a=b") == ["well"]


def test_an_answer_without_series_is_no_data(monkeypatch):
    asked = []

    def said(*words):
        asked.append(words[-1])
        return json.dumps({"status": "success", "data": {"result": [{}] if "some" in words[-1] else []}})

    monkeypatch.setattr(installation, "ask", said)
    query = 'sum(rate(some_total{namespace="$namespace"}[$__rate_interval]))'
    assert installation.has_data("pod-1", query) and not installation.has_data("pod-1", "none")
    path, _, query = asked[0].partition("?query=")
    assert path == "/api/v1/namespaces/plaudit/pods/pod-1:9090/proxy/api/v1/query"
    assert urllib.parse.unquote_plus(query) == 'sum(rate(some_total{namespace="plaudit"}[1m]))'


def test_a_line_that_is_being_written_is_no_step_yet(monkeypatch):
    answer(
        monkeypatch,
        '{"step": 0, "time": 0.5}\n{"step": 1, "time": 1.0}\n{"step": 2, "time": 2.0}\n{"step": 3, "ti',
    )
    assert installation.steps("tiny") == [1, 2]
    answer(monkeypatch, "")
    assert installation.steps("tiny") == []


def test_a_job_has_ended_when_the_cluster_says_so(monkeypatch):
    answer(monkeypatch, {"status": {"active": 1}})
    assert installation.end_of_job("plaudit-trainer") == []
    early = {"type": "SuccessCriteriaMet", "status": "True"}
    answer(monkeypatch, {"status": {"conditions": [early, {"type": "Complete", "status": "True"}]}})
    assert installation.end_of_job("plaudit-trainer") == ["Complete"]


# --- without a cluster


def test_they_are_skipped_with_the_reason(monkeypatch):
    monkeypatch.delenv("KUBECONFIG", raising=False)
    with pytest.raises(pytest.skip.Exception, match="KUBECONFIG"):
        installation.needs_a_cluster()
    assert pytest.mark.cluster in test_on_a_cluster.pytestmark


def test_waiting_ends_and_says_for_what(monkeypatch):
    now = itertools.count(0, 10)
    monkeypatch.setattr(installation.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(installation.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(installation, "sight", lambda: "no pods")
    looks = iter([[], [], ["pod"]])
    assert installation.until(lambda: next(looks), 60, "a pod") == ["pod"]
    with pytest.raises(AssertionError, match="a pod: not within 60 s\nno pods"):
        installation.until(list, 60, "a pod")
