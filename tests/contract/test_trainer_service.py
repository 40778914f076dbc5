"""GetRun over a real server, from the board that the training loop writes."""

import grpc
import pytest
import trustme
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lm.errors import ModelLoadError
from plaudit.access import token_entry
from plaudit.clients import PermissionDenied, PlauditError, TrainerClient
from plaudit.health import HealthClient
from trainer.board import Board
from trainer.config import RunOptions
from trainer.errors import ConfigError, DataError, Stopped
from trainer.servicer import serve_run, to_proto
from trainer.stopping import StopSignal

ANY = RunOptions(address="127.0.0.1:0")


def address_of(capsys):
    return capsys.readouterr().out.split("listening on ")[1].split()[0]


def test_get_run_tells_what_the_board_holds_from_start_to_end(capsys):
    board = Board("nightly-1")
    with serve_run(board, "ppo", ANY, StopSignal()), TrainerClient(address_of(capsys)) as client:
        run = client.get_run()
        assert (run.run_id, run.stage, run.state, run.step, run.last_step_at) == (
            "nightly-1", "ppo", "starting", 0, None,
        )  # fmt: skip
        assert run.started_at.timestamp() == pytest.approx(board.status.started_at.timestamp(), abs=1e-5)
        last = board.status.started_at
        board.tell(
            state="running",
            step=3,
            total_steps=9,
            metrics={"objective/kl": 0.5},
            last_step_at=last,
            checkpoint="c",
        )
        run = client.get_run()
        assert (run.state, run.step, run.total_steps, run.checkpoint) == ("running", 3, 9, "c")
        assert run.metrics == {"objective/kl": 0.5}
        assert run.last_step_at is not None
    assert board.status.state == "finished"


@pytest.mark.parametrize(
    ("end", "state", "says"),
    [
        (Stopped("after step 3"), "stopped", "after step 3"),
        (KeyboardInterrupt(), "stopped", ""),
        (ValueError("no"), "failed", "ValueError"),
        (DataError("x.jsonl line 3: not JSON"), "failed", "DataError: x.jsonl line 3: not JSON"),
        (ModelLoadError("m: no such folder"), "failed", "ModelLoadError: m: no such folder"),
    ],
)
def test_how_a_run_ended_stands_on_the_board(end, state, says):
    board = Board("r")
    with pytest.raises(type(end)), serve_run(board, "sft", RunOptions(), StopSignal()):
        raise end
    assert (board.status.state, board.status.error) == (state, says)
    assert to_proto(board.status).state > 3


def test_without_an_address_nothing_is_served(capsys):
    with serve_run(Board("r"), "reward_model", RunOptions(), StopSignal()):
        assert capsys.readouterr().out == ""


def test_an_address_that_is_taken_or_open_to_others_is_a_wrong_configuration(capsys):
    with serve_run(Board("r"), "ppo", ANY, StopSignal()):
        taken = RunOptions(address=address_of(capsys))
        with pytest.raises(ConfigError, match="--address"), serve_run(Board("s"), "ppo", taken, StopSignal()):
            pass
    with (
        pytest.raises(ConfigError, match="--insecure"),
        serve_run(Board("s"), "ppo", RunOptions(address="0.0.0.0:0"), StopSignal()),
    ):
        pass


def test_a_token_is_asked_for_where_one_is_set(capsys, monkeypatch):
    monkeypatch.setenv("PLAUDIT_TOKEN", "secret")
    with serve_run(Board("r"), "ppo", ANY, StopSignal()):
        address = address_of(capsys)
        with TrainerClient(address) as client:
            assert client.get_run().run_id == "r"
        with TrainerClient(address, token="wrong") as client, pytest.raises(PlauditError):
            client.get_run()


def test_a_token_of_a_file_is_asked_for_and_shown(capsys, monkeypatch, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.delenv("PLAUDIT_TOKEN", raising=False)
    monkeypatch.setenv("PLAUDIT_TOKEN_FILE", str(tmp_path / "token"))
    with serve_run(Board("r"), "ppo", ANY, StopSignal()):
        address = address_of(capsys)
        with TrainerClient(address) as client:
            assert client.get_run().run_id == "r"
        with TrainerClient(address, token="wrong") as client, pytest.raises(PlauditError):
            client.get_run()


def test_tls_tokens_and_a_port_for_probes_are_those_of_every_server(capsys, tmp_path):
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    made = ca.issue_cert("127.0.0.1")
    made.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    made.private_key_pem.write_to_path(tmp_path / "server.key")
    (tmp_path / "tokens.toml").write_text(token_entry("watcher", "word", ["trainer:read"]))
    options = RunOptions(
        address="127.0.0.1:0",
        health_address="127.0.0.1:0",
        tls_cert=tmp_path / "server.pem",
        tls_key=tmp_path / "server.key",
        tokens=tmp_path / "tokens.toml",
    )
    with serve_run(Board("r"), "ppo", options, StopSignal()):
        out = capsys.readouterr().out
        address, health = (out.split(f"{what} on ")[1].split()[0] for what in ("listening", "health"))
        with TrainerClient(address, token="word", tls_ca=tmp_path / "ca.pem") as client:
            assert client.get_run().run_id == "r"
            with pytest.raises(PermissionDenied, match="trainer:control"):
                client.stop_run()
        with HealthClient(health) as client:
            assert client.check() == "serving"


def test_files_that_cannot_be_used_are_a_wrong_configuration(tmp_path):
    options = RunOptions(address="127.0.0.1:0", tokens=tmp_path / "none.toml")
    with (
        pytest.raises(ConfigError, match=r"none.toml can't be read"),
        serve_run(Board("r"), "ppo", options, StopSignal()),
    ):
        pass


@pytest.mark.parametrize("reflection", [True, False])
def test_reflection_and_channelz_can_be_left_out(capsys, reflection):
    options = RunOptions(address="127.0.0.1:0", reflection=reflection)
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    with (
        serve_run(Board("r"), "ppo", options, StopSignal()),
        grpc.insecure_channel(address_of(capsys)) as channel,
    ):
        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        calls = {
            "reflection": lambda: list(ask(iter([question]), timeout=20)),
            "channelz": lambda: channelz_pb2_grpc.ChannelzStub(channel).GetServers(
                channelz_pb2.GetServersRequest(), timeout=20
            ),
        }
        assert {name for name, call in calls.items() if answers(call)} == (
            set(calls) if reflection else set()
        )


def answers(call):
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        return False
    return True
