"""`status` and `submit --follow` where services speak TLS and ask for tokens, with a real TrainerService."""

import contextlib
from pathlib import Path

import pytest
from certificates import Pems
from cluster_objects import job, pod, put_services
from guarded_servers import entry, write_tokens

from trainer.board import Board
from trainer.cluster import following, status
from trainer.cluster.errors import Misused
from trainer.cluster.following import Listener
from trainer.config import RunOptions
from trainer.servicer import serve_run
from trainer.stopping import StopSignal

SERVICE = "plaudit-trainer"
FAR = "10.255.255.1"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """A pod that isn't there is asked for no longer than this."""
    for module in (status, following):
        monkeypatch.setattr(module, "ASK_S", 2.0)


@pytest.fixture(scope="module")
def pems(tmp_path_factory):
    return Pems(tmp_path_factory.mktemp("pems"))


@pytest.fixture
def trainer_pod(server, capsys):
    """trainer_pod(**options) puts a trainer's pod on the cluster, which answers at 127.0.0.1."""
    put_services(server)
    with contextlib.ExitStack() as stack:

        def put(**options):
            board = Board("nightly")
            board.tell(state="running", step=3, total_steps=14)
            told = RunOptions(address="127.0.0.1:0", **options)
            stack.enter_context(serve_run(board, "ppo", told, StopSignal()))
            port = int(capsys.readouterr().out.split("listening on 127.0.0.1:")[1].split()[0])
            training = server.put("jobs", job(SERVICE, "trainer"))
            made = server.put("pods", pod(training, ip="127.0.0.1", port=port))
            return made, board

        yield put


def tls(pems, *names):
    """Options of a server whose certificate is for `names`, and not for its address."""
    cert, key = pems.write(names[0], *names)
    return {"tls_cert": Path(cert), "tls_key": Path(key)}


# --- TLS


def test_a_pod_is_known_by_the_name_of_its_service(run, trainer_pod, pems, monkeypatch):
    trainer_pod(**tls(pems, SERVICE))
    monkeypatch.setenv("PLAUDIT_TLS_CA", str(pems.ca_file))
    code, out, _ = run("status")
    assert code == 0 and out.splitlines()[-1] == "nightly: running, step 3 of 14"
    assert "3 of 14" in out.partition("plaudit-trainer")[2].splitlines()[0]


def test_a_pod_that_stands_for_another_service_is_not_believed(run, trainer_pod, pems, monkeypatch):
    trainer_pod(**tls(pems, "plaudit-policy"))
    monkeypatch.setenv("PLAUDIT_TLS_CA", str(pems.ca_file))
    code, out, _ = run("status")
    assert code == 0 and "plaudit-trainer: the server's certificate is for another name" in out


def test_without_the_ca_it_says_what_to_give(run, trainer_pod, pems):
    trainer_pod(**tls(pems, SERVICE))
    code, out, _ = run("status")
    assert code == 0 and "PLAUDIT_TLS_CA" in out
    assert "step 3" not in out


def test_a_ca_that_is_not_there_is_told(run, trainer_pod, pems, monkeypatch):
    trainer_pod(**tls(pems, SERVICE))
    monkeypatch.setenv("PLAUDIT_TLS_CA", "/no/such/ca.pem")
    code, out, _ = run("status")
    assert code == 0 and "plaudit-trainer: tls_ca: /no/such/ca.pem can't be read" in out


def test_a_run_is_followed_by_tls(trainer_pod, cluster, pems, monkeypatch):
    made, board = trainer_pod(**tls(pems, SERVICE))
    monkeypatch.setenv("PLAUDIT_TLS_CA", str(pems.ca_file))
    board.tell(state="finished")
    lines = []
    Listener(cluster, cluster.clock.monotonic() + 30, lines.append).listen(made)
    assert lines[-1].partition("  ")[2] == "finished  step 3/14"


# --- tokens


@pytest.fixture
def tokens(tmp_path):
    return write_tokens(
        tmp_path / "tokens.toml", entry("reads", "trainer:read"), entry("scores", "score", name="another")
    )


def test_a_token_that_may_read_the_run(run, trainer_pod, tokens, monkeypatch):
    trainer_pod(tokens=tokens)
    monkeypatch.setenv("PLAUDIT_TOKEN", "reads")
    code, out, _ = run("status")
    assert code == 0 and out.splitlines()[-1] == "nightly: running, step 3 of 14"


@pytest.mark.parametrize(("token", "said"), [("", "token"), ("scores", "trainer:read")])
def test_a_token_that_may_not_is_told_and_ends_nothing(run, trainer_pod, tokens, monkeypatch, token, said):
    trainer_pod(tokens=tokens)
    monkeypatch.setenv("PLAUDIT_TOKEN", token)
    code, out, err = run("status")
    (line,) = (line for line in out.splitlines() if line.startswith("plaudit-trainer: "))
    assert code == 0 and said in line and err == ""
    assert status.OUT_OF_REACH not in out, "it answers, and says no"


def test_a_follower_who_may_not_listen_reads_the_log(trainer_pod, cluster, server, tokens):
    made, _ = trainer_pod(tokens=tokens)
    server.logs[made["metadata"]["name"]] = [["2026-01-01T00:00:01.0Z step 4"]]
    lines = []
    Listener(cluster, cluster.clock.monotonic() + 30, lines.append).listen(made)
    assert "token" in lines[0] and "what it logs" in lines[0]
    assert lines[1:] == ["step 4"]


def test_a_token_does_not_go_to_pods_in_plaintext(run, server, cluster, monkeypatch):
    put_services(server)
    training = server.put("jobs", job(SERVICE, "trainer"))
    far = server.put("pods", pod(training, ip=FAR, port=50060))
    monkeypatch.setenv("PLAUDIT_TOKEN", "secret")
    code, _, err = run("status")
    assert code == 64 and f"{FAR}:50060" in err and "PLAUDIT_TLS_CA" in err and "secret" not in err
    with pytest.raises(Misused, match="PLAUDIT_INSECURE"):
        Listener(cluster, cluster.clock.monotonic() + 30, print).listen(far)
