"""WatchRun and StopRun: every event once, over streams that break; an end that somebody asked for."""

import asyncio
import contextlib
import threading
import time

import grpc
import pytest

from plaudit.cli import main
from plaudit.clients import AsyncTrainerClient, TrainerClient, trainer as trainer_client
from plaudit.clients.errors import Unavailable
from plaudit.v1 import trainer_pb2, trainer_pb2_grpc
from trainer.board import EVENTS_KEPT, Board
from trainer.config import RunOptions
from trainer.errors import Stopped, StoppedByCall
from trainer.servicer import serve_run
from trainer.stopping import StopSignal

ANY = RunOptions(address="127.0.0.1:0")


@contextlib.contextmanager
def serving(capsys, board, stop=None):
    with serve_run(board, "ppo", ANY, stop or StopSignal()):
        yield capsys.readouterr().out.split("listening on ")[1].split()[0]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(trainer_client, "PAUSE_SECONDS", 0.05)


def followed(board):
    """Returns once somebody follows: an end before that would find nobody."""
    end = time.monotonic() + 30
    while not board._watchers:
        assert time.monotonic() < end
        time.sleep(0.005)


def follow(address, seen, **options):
    with TrainerClient(address) as client:
        for event in client.watch_run(**options):
            seen.append(event)


# --- the board ---


def test_events_are_numbered_and_the_oldest_go_first():
    board = Board("r")
    for step in range(EVENTS_KEPT + 5):
        board.tell(step=step)
    numbers = [number for number, _ in board.events(0)]
    assert numbers == list(range(6, EVENTS_KEPT + 6))
    assert [status.step for _, status in board.events(EVENTS_KEPT + 3)] == [EVENTS_KEPT + 3, EVENTS_KEPT + 4]
    assert board.events(10_000) == []


def test_watchers_hear_of_each_event_until_they_go():
    board, told = Board("r"), []
    forget = board.watch(lambda: told.append(board.status.step))
    board.tell(step=1)
    board.tell(step=2)
    forget()
    board.tell(step=3)
    assert told == [1, 2]


# --- WatchRun ---


def test_a_follower_gets_what_was_and_what_comes_until_the_end(capsys):
    board, seen = Board("nightly"), []
    board.tell(state="running", step=1, total_steps=3, metrics={"objective/kl": 0.5})
    with serving(capsys, board) as address:
        thread = threading.Thread(target=follow, args=(address, seen))
        thread.start()
        followed(board)
        board.tell(step=2)
        board.tell(step=3, checkpoint="c")
    thread.join(20)
    assert not thread.is_alive()
    assert [event.number for event in seen] == list(range(1, len(seen) + 1))
    assert [event.run.step for event in seen if event.run.state == "running"][-1] == 3
    assert (seen[0].run.run_id, seen[0].run.metrics) == ("nightly", {"objective/kl": 0.5})
    assert (seen[-1].run.state, seen[-1].run.checkpoint) == ("finished", "c")


def test_an_async_follower_gets_the_same(capsys):
    board = Board("r")

    async def watch(address):
        async with AsyncTrainerClient(address) as client:
            return [event async for event in client.watch_run()]

    found = []
    with serving(capsys, board) as address:
        thread = threading.Thread(target=lambda: found.extend(asyncio.run(watch(address))))
        thread.start()
        followed(board)
        board.tell(state="running", step=1)
    thread.join(20)
    assert [event.number for event in found] == list(range(1, len(found) + 1))
    assert found[-1].run.state == "finished"


def test_a_stream_goes_on_where_the_caller_was(capsys):
    board = Board("r")
    with serving(capsys, board) as address, grpc.insecure_channel(address) as channel:
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        for step in (1, 2, 3):
            board.tell(step=step)
        last = board.events(0)[-1][0]
        request = trainer_pb2.WatchRunRequest(run_id="r", after=last - 1)
        stream = stub.WatchRun(request, timeout=20)
        assert (next(stream).number, board.status.step) == (last, 3)
        stream.cancel()
        other = stub.WatchRun(trainer_pb2.WatchRunRequest(run_id="another", after=last), timeout=20)
        assert next(other).number == 1
        other.cancel()


def test_a_follower_survives_streams_that_end(capsys, monkeypatch):
    monkeypatch.setattr(trainer_client, "WATCH_SECONDS", 0.3)
    board, seen = Board("r"), []
    with serving(capsys, board) as address:
        thread = threading.Thread(target=follow, args=(address, seen))
        thread.start()
        for step in range(1, 6):
            thread.join(0.2)
            board.tell(step=step)
        followed(board)  # the streams end every 0.3 s; the last event must meet one that is open
        board.tell(state="finished")
    thread.join(20)
    numbers = [event.number for event in seen]
    assert numbers == list(range(1, len(seen) + 1))
    assert {event.run.step for event in seen} >= {1, 2, 3, 4, 5}


def test_a_trainer_that_is_away_too_long_is_an_error(unused_tcp_port):
    with pytest.raises(Unavailable), TrainerClient(f"127.0.0.1:{unused_tcp_port}") as client:
        list(client.watch_run(patience=0.2))


# --- StopRun ---


def test_stop_run_asks_and_says_where_the_run_stands(capsys):
    board, stop = Board("r"), StopSignal()
    board.tell(state="running", step=4, total_steps=9)
    with serving(capsys, board, stop) as address, TrainerClient(address) as client:
        assert client.stop_run().step == 4
        client.stop_run()
        assert stop.requested
    assert isinstance(stop.error("x"), StoppedByCall)


def test_an_end_that_was_asked_for_exits_with_0_and_sigterms_with_75():
    asked, told = StopSignal(), StopSignal()
    asked.ask()
    assert asked.error("by call").exit_code == 0
    assert told.error("by SIGTERM").exit_code == Stopped.exit_code == 75


# --- the command ---


def test_plaudit_run_watch_and_stop(capsys):
    board, stop = Board("nightly"), StopSignal()
    board.tell(state="running", step=1, total_steps=2, metrics={"objective/kl": 0.5, "other": 1.0})
    codes = []
    with serving(capsys, board, stop) as address:
        thread = threading.Thread(target=lambda: codes.append(main(["run", "watch", "--address", address])))
        thread.start()
        followed(board)
        assert main(["run", "stop", "--address", address]) == 0
        board.tell(step=2)
    thread.join(20)
    out = capsys.readouterr().out
    assert codes == [0]
    assert stop.requested
    assert "nightly ends after the step under way; it has done 1 of 2" in out
    assert "running  step 1/2  objective/kl 0.5" in out
    assert "other" not in out
    assert "finished  step 2/2" in out


def test_plaudit_run_watch_fails_with_the_run(capsys):
    board = Board("r")
    codes = []
    with pytest.raises(ValueError, match="no"), serving(capsys, board) as address:
        arguments = ["run", "watch", "--json", "--address", address]
        thread = threading.Thread(target=lambda: codes.append(main(arguments)))
        thread.start()
        followed(board)
        raise ValueError("no")
    thread.join(20)
    assert codes == [70]
    assert '"state": "failed"' in capsys.readouterr().out
