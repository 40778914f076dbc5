"""`submit --follow`: the steps of a run while it works, and its own exit code at the end."""

import contextlib
import threading
from pathlib import Path

import pytest
from api_server import Refusal
from cluster_objects import condition, job, pod, terminated, waiting

from plaudit.clients import trainer as trainer_client
from trainer.board import Board
from trainer.cluster import following, status
from trainer.cluster.errors import Misused, TimedOut, WorkloadFailed
from trainer.config import RunOptions
from trainer.errors import TrainerError
from trainer.servicer import serve_run
from trainer.stopping import StopSignal

TOML = Path(__file__).parents[3] / "k8s/base/ppo.toml"
NAME = "plaudit-run-nightly"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """A pod that isn't there is asked for no longer than this."""
    for module in (status, following):
        monkeypatch.setattr(module, "ASK_S", 0.3)
    monkeypatch.setattr(trainer_client, "PAUSE_SECONDS", 0.02)


@pytest.fixture
def started(server):
    return server.put("jobs", job(NAME, "trainer", active=1))


@pytest.fixture
def follow(cluster):
    """follow(timeout) → (exit code, lines)."""

    def act(timeout=3600.0):
        lines = []
        return following.follow(cluster, NAME, timeout, lines.append), lines

    return act


@contextlib.contextmanager
def serving(board, capsys):
    with serve_run(board, "ppo", RunOptions(address="127.0.0.1:0"), StopSignal()):
        yield int(capsys.readouterr().out.split("listening on 127.0.0.1:")[1].split()[0])


def ends(server, started, code):
    """What the cluster does when the run's pod has ended."""

    def act():
        each = server.objects["pods", "nightly-pod"]
        phase = "Succeeded" if code == 0 else "Failed"
        each["status"] |= pod(started, phase=phase, ready=False, status=terminated(code))["status"]
        end = (
            condition("Complete")
            if code == 0
            else condition("Failed", reason="PodFailurePolicy", message="m")
        )
        started["status"]["conditions"] = [end]

    return act


def put_pod(server, started, name="nightly-pod", **more):
    return server.put("pods", pod(started, name, **more))


# --- through WatchRun


def test_steps_are_told_as_they_end(follow, server, started, capsys, clock):
    board = Board("nightly")
    board.tell(state="running", step=1, total_steps=2, metrics={"objective/scores": 0.25})
    # For one look more the pod seems to work: what is known already isn't told again.
    clock.steps += [lambda: None, ends(server, started, 0)]

    def work():
        board.tell(step=2, metrics={"objective/scores": 0.5})
        board.tell(state="finished")

    with serving(board, capsys) as port:
        put_pod(server, started, ip="127.0.0.1", port=port)
        worker = threading.Thread(target=when_followed, args=(board, work))
        worker.start()
        code, lines = follow()
        worker.join()
    assert code == 0 and lines[0] == f"Job {NAME}: its pod is ready"
    assert [line.partition("  ")[2] for line in lines[1:-1]] == [
        "running  step 1/2  objective/scores 0.25",
        "running  step 1/2  objective/scores 0.25",
        "running  step 2/2  objective/scores 0.5",
        "finished  step 2/2  objective/scores 0.5",
    ]
    assert lines[-1] == f"Job {NAME}: complete"


def when_followed(board, act):
    """A follower is one more who watches the board."""
    followed = threading.Event()
    watch = board.watch

    def watched(told):
        followed.set()
        return watch(told)

    board.watch = watched
    assert followed.wait(30)
    act()


def test_a_run_that_fails_ends_with_its_exit_code(follow, server, started, capsys, clock):
    board = Board("nightly")
    clock.steps.append(ends(server, started, 70))
    with contextlib.suppress(TrainerError), serving(board, capsys) as port:
        put_pod(server, started, ip="127.0.0.1", port=port)
        board.tell(state="failed", error="losses are not finite")
        code, lines = follow()
    assert code == 70
    assert any("failed  step 0/0  losses are not finite" in line for line in lines)
    assert lines[-1].startswith(f"Job {NAME}: PodFailurePolicy: m; plaudit ended with exit code 70")


def test_a_trainer_that_hangs_is_followed_no_longer_than_was_asked(follow, server, started, capsys):
    with serving(Board("nightly"), capsys) as port:
        put_pod(server, started, ip="127.0.0.1", port=port)
        with pytest.raises(TimedOut, match=f"kubectl logs -f job/{NAME}"):
            follow(timeout=0.2)


def test_a_pod_that_has_answered_is_not_asked_for_its_log(follow, server, started, capsys, clock):
    """It is on its way out, and has told everything."""
    board = Board("nightly")
    with serving(board, capsys) as port:
        put_pod(server, started, ip="127.0.0.1", port=port)
        board.tell(state="finished")

        def gone():
            server.objects["pods", "nightly-pod"]["spec"]["containers"][0]["ports"][0]["containerPort"] = 9

        clock.steps += [gone, ends(server, started, 0)]
        code, lines = follow()
    assert code == 0 and len(lines) == 4
    assert "pods/log" not in {asked.resource for asked in server.asked}


# --- by its log


@pytest.fixture
def from_afar(server, started):
    """A pod whose address nobody answers at."""
    return put_pod(server, started, ip="127.0.0.1", port=9)


def test_from_afar_its_log_is_told(follow, server, started, from_afar, clock):
    server.logs["nightly-pod"] = [["2026-01-01T00:00:01.0Z step 1", "2026-01-01T00:00:02.0Z step 2"]]
    clock.steps.append(ends(server, started, 0))
    code, lines = follow()
    assert code == 0
    assert lines[:1] + lines[2:] == [
        f"Job {NAME}: its pod is ready",
        "step 1",
        "step 2",
        f"Job {NAME}: complete",
    ]
    assert lines[1].startswith("its pod doesn't answer from here (not reachable for ")


def test_a_log_that_breaks_goes_on_without_a_line_twice(follow, server, started, from_afar, clock):
    one, two = "2026-01-01T00:00:01.1Z one", "2026-01-01T00:00:01.2Z two"
    server.logs["nightly-pod"] = [[one], [one, two]]
    server.fail("get", "pods/log", "drop")
    clock.steps += [lambda: None, ends(server, started, 0)]
    _, lines = follow()
    assert [line for line in lines if line in ("one", "two")] == ["one", "two"]
    since = [query.get("sinceTime") for verb, resource, query in server.queries if resource == "pods/log"]
    assert since == [None, "2026-01-01T00:00:01.1Z"]


def test_a_pod_that_is_replaced_is_followed_on(follow, server, started, from_afar, clock):
    server.logs = {
        "nightly-pod": [["2026-01-01T00:00:01Z of the first"]],
        "second": [["2026-01-01T00:00:01Z of the second"]],
    }

    def drained():
        server.remove("pods", "nightly-pod")
        put_pod(server, started, "second", ip="127.0.0.1", port=9)

    def done():
        started["status"]["conditions"] = [condition("Complete")]

    clock.steps += [drained, done]
    code, lines = follow()
    assert code == 0 and [line for line in lines if line.startswith("of the")] == [
        "of the first",
        "of the second",
    ]


@pytest.mark.parametrize("refusal", [Refusal(404, "pods not found"), Refusal(502, "no route to the node")])
def test_a_log_that_cannot_be_had_ends_nothing(follow, server, started, from_afar, clock, refusal):
    server.fail("get", "pods/log", refusal, times=6)
    clock.steps += [*[lambda: None] * 5, ends(server, started, 0)]
    code, lines = follow()
    assert code == 0 and any(refusal.message in line for line in lines)


# --- what doesn't begin, or doesn't end


def test_a_pod_that_cannot_start_is_told_as_by_wait(follow, server, started):
    put_pod(server, started, phase="Pending", ready=False, status=waiting("ErrImageNeverPull"))
    with pytest.raises(WorkloadFailed, match="ErrImageNeverPull"):
        follow()


def test_a_configuration_that_the_pod_refuses_is_64(follow, server, started):
    started["status"]["conditions"] = [condition("Failed", reason="PodFailurePolicy", message="exit code 64")]
    put_pod(
        server, started, phase="Failed", ready=False, status=terminated(64, message="run.name: is required")
    )
    code, lines = follow()
    assert code == 64 and "run.name: is required" in lines[-1]


def test_a_failed_job_without_pods_is_70(follow, server, started):
    started["status"]["conditions"] = [condition("Failed", reason="DeadlineExceeded")]
    assert follow()[0] == 70


def test_a_job_that_somebody_deletes(follow, server, started, clock):
    clock.steps.append(lambda: server.remove("jobs", NAME))
    with pytest.raises(Misused, match="has been deleted"):
        follow()


def test_a_job_that_stays_pending_times_out(follow, server, started):
    put_pod(server, started, phase="Pending", ready=False)
    with pytest.raises(TimedOut, match="goes on after 30 s"):
        follow(timeout=30.0)


def test_submit_ends_with_the_runs_code(run, server, clock):
    base = job("plaudit-trainer", "trainer")
    server.put("jobs", base)

    def fail():
        made = server.objects["jobs", NAME]
        made["status"] = {"conditions": [condition("Failed", reason="PodFailurePolicy")]}
        server.put("pods", pod(made, phase="Failed", ready=False, status=terminated(64)))

    clock.steps.append(fail)
    code, out, err = run("submit", TOML, "--name", "nightly", "--follow")
    assert code == 64 and f"the Job {NAME} is made" in out and err == ""
