"""`status`: what a person sees of a cluster, near and from afar."""

import contextlib
from datetime import UTC, datetime
from io import StringIO

import pytest
from cluster_objects import IMAGE, condition, job, pod, put_services, replica_set, terminated
from rich.console import Console

from plaudit.clients import ModelVersion, QueueDepth, Run
from plaudit.survey import Sight
from trainer.board import Board
from trainer.cluster import status
from trainer.cluster.status import Row
from trainer.config import RunOptions
from trainer.servicer import serve_run
from trainer.stopping import StopSignal

AWAY = "127.0.0.1:9"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """A pod that isn't there is asked for no longer than this."""
    monkeypatch.setattr(status, "ASK_S", 0.3)


@contextlib.contextmanager
def a_trainer(capsys, **told):
    """A TrainerService; its port."""
    board = Board("nightly")
    board.tell(state="running", **told)
    with serve_run(board, "ppo", RunOptions(address="127.0.0.1:0"), StopSignal()):
        yield int(capsys.readouterr().out.split("listening on 127.0.0.1:")[1].split()[0])


def text(table):
    console = Console(file=StringIO(), width=160, markup=False)
    console.print(table)
    return console.file.getvalue()


def cells(printed):
    """Rows of a table by their first cell."""
    lines = [line.split() for line in printed.splitlines() if line.strip().startswith("plaudit-")]
    return {line[0]: line[1:] for line in lines}


# --- what the API server knows


def test_every_workload_has_a_row(run, server):
    put_services(server, policy={"replicas": 2, "ready": 1}, gateway={"replicas": 0, "ready": 0})
    models = server.put("jobs", job("plaudit-models", "models", condition("Complete")))
    server.put("pods", pod(models, phase="Succeeded", ready=False, status=terminated(0, "Completed")))
    training = server.put("jobs", job("plaudit-trainer", "trainer", failed=2))
    server.put("pods", pod(training))
    server.put("jobs", job("plaudit-run-a", "trainer", condition("Failed"), failed=7))
    code, out, _ = run("status")
    assert code == 0
    assert cells(out) == {
        "plaudit-gateway": ["0/0", "0.1.0", "0"],
        "plaudit-models": ["complete", "0.1.0", "0"],
        "plaudit-policy": ["1/2", "0.1.0", "0"],
        "plaudit-reference": ["1/1", "0.1.0", "0"],
        "plaudit-reward": ["1/1", "0.1.0", "0"],
        "plaudit-run-a": ["failed", "0.1.0", "7"],
        "plaudit-trainer": ["1/1", "0.1.0", "2"],
    }
    assert "step" in out and "queue: items/tokens" in out


def test_a_rollout_shows_both_versions_and_restarts_of_all_pods(run, server):
    put_services(server)
    former = server.put("replicasets", replica_set(server.objects["deployments", "plaudit-reward"], "1"))
    old = server.put("pods", pod(former, "old"))
    old["spec"]["containers"][0]["image"] = "plaudit:0.0.9"
    old["status"]["containerStatuses"][0]["restartCount"] = 3
    _, out, _ = run("status")
    assert cells(out)["plaudit-reward"] == ["2/1", "0.0.9,", "0.1.0", "3"]


def test_nothing_there(run, server):
    code, _, err = run("status")
    assert code == 64 and "nothing of Plaudit is in the namespace plaudit" in err


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("plaudit:0.1.0", "0.1.0"),
        (IMAGE, "0.1.0"),
        ("localhost:5000/plaudit", "latest"),
        ("plaudit@sha256:0123456789abcdef0123", "sha256:0123456789ab"),
        ("plaudit:0.1.0@sha256:0123456789abcdef0123", "sha256:0123456789ab"),
    ],
)
def test_a_version_is_what_tells_images_apart(image, version):
    assert status.version(image) == version


def test_only_running_pods_with_a_grpc_port_are_asked():
    owner = {
        "metadata": {"uid": "u", "labels": {"app.kubernetes.io/component": "x"}, "name": "x"},
        "kind": "X",
    }
    assert status.grpc_address(pod(owner, port=50051)) == "10.0.0.1:50051"
    assert status.grpc_address(pod(owner, port=50051, ip="fd00::1")) == "[fd00::1]:50051"
    assert status.grpc_address(pod(owner, port=50051, ip="")) is None
    assert status.grpc_address(pod(owner, port=50051, phase="Pending")) is None
    assert status.grpc_address(pod(owner)) is None


# --- what the pods know


def test_a_trainer_that_answers_tells_of_its_run(run, server, capsys):
    put_services(server)
    training = server.put("jobs", job("plaudit-trainer", "trainer"))
    scores = {"objective/scores": 0.52345, "objective/kl": 1.25, "train/loss": 3.0}
    with a_trainer(capsys, step=3, total_steps=14, metrics=scores) as port:
        server.put("pods", pod(training, ip="127.0.0.1", port=port))
        code, out, _ = run("status")
    assert code == 0 and cells(out)["plaudit-trainer"] == ["1/1", "0.1.0", "0", "3", "of", "14"]
    assert out.splitlines()[-1] == "nightly: running, step 3 of 14, reward 0.5234, KL 1.25"


def test_pods_out_of_reach_are_dashes_and_said_once(run, server):
    sets = put_services(server)
    for component in ("reward", "policy"):
        server.put("pods", pod(sets[component], f"{component}-0", ip="127.0.0.1", port=9))
        server.remove("pods", f"plaudit-{component}-0")
    code, out, _ = run("status")
    assert code == 0
    assert cells(out)["plaudit-policy"] == ["1/1", "0.1.0", "0", "–", "–"]
    assert out.count("pods don't answer from here") == 1


def a_model(step):
    return ModelVersion("sft", step, "ab" * 32, "cd" * 32)


def test_replicas_are_told_together():
    rows = [
        Row("plaudit-policy", "2/2", ("0.1.0",), 0, ("a:1", "b:1"), "plaudit-policy"),
        Row("plaudit-reward", "1/1", ("0.1.0",), 0, ("c:1",), "plaudit-reward"),
        Row("plaudit-gateway", "1/1", ("0.1.0",), 0, (), "plaudit-gateway"),
    ]
    sights = [
        Sight("a:1", "policy", step="4", queue=QueueDepth(3, 1000, 9000)),
        Sight("b:1", "policy", step="5", queue=QueueDepth(1, 200, 900)),
        Sight("c:1", error="not reachable", away=True),
    ]
    assert cells(text(status.table(rows, sights))) == {
        "plaudit-policy": ["2/2", "0.1.0", "0", "4,", "5", "4/1,200"],
        "plaudit-reward": ["1/1", "0.1.0", "0", "–", "–"],
        "plaudit-gateway": ["1/1", "0.1.0", "0"],
    }


def test_a_run_without_numbers_yet():
    starting = Run("a", "ppo", "starting", 0, 14, datetime.now(UTC), None, {}, "", "")
    assert status.run_text(starting) == "a: starting, step 0 of 14"


def test_a_run_that_has_ended_meanwhile_is_left_out():
    assert list(status.runs([Sight(AWAY, "trainer"), Sight(AWAY, "reward")])) == []
