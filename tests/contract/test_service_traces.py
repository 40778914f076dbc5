"""Traces of single services: streams, refusals, and blocking clients under a tracer."""

import socket
from functools import partial

import pytest
from opentelemetry.trace import SpanKind, StatusCode
from tracers import assert_chain, spans_by_kind_and_name, spans_in_memory

from plaudit import InvalidArgument, RewardClient, Unreachable
from plaudit.clients import TrainerClient
from plaudit.health import HealthClient
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from trainer.board import Board
from trainer.config import RunOptions
from trainer.servicer import serve_run
from trainer.stopping import StopSignal
from trainer.tracing import span

SCORE, STREAM = "/plaudit.v1.RewardService/Score", "/plaudit.v1.RewardService/ScoreStream"
PAIRS = [("the film", " is good"), ("a dull", " story"), ("what a", " joy")]


@pytest.fixture(scope="module")
def memory():
    with spans_in_memory() as exporter:
        yield exporter


@pytest.fixture(scope="module")
def address(memory, tiny_reward):
    options = ModelOptions(str(tiny_reward), "cpu", "float32", 1)
    with serve_in_background(lambda: reward_service(options)) as server:
        yield server.address


@pytest.fixture
def spans(memory, caplog):
    """spans(count) waits for so many, by kind and name; nothing was complained of meanwhile."""
    memory.clear()
    yield partial(spans_by_kind_and_name, memory)
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


def assert_joined(found, name):
    """A call within a span, and the service's part in it."""
    outer, call, served = (
        found[SpanKind.INTERNAL, "work"], found[SpanKind.CLIENT, name], found[SpanKind.SERVER, name],
    )  # fmt: skip
    assert outer.parent is None
    assert_chain(outer, call, served)


def test_a_call_and_its_service_are_joined(address, spans):
    with RewardClient(address) as client, span("work", number=3):
        client.score(PAIRS)
    found = spans(3)
    assert_joined(found, SCORE)
    assert found[SpanKind.INTERNAL, "work"].attributes == {"plaudit.number": 3}
    served = found[SpanKind.SERVER, SCORE].attributes
    assert served["rpc.grpc.status_code"] == 0
    assert served["plaudit.compute_seconds"] > 0 and served["plaudit.queue_seconds"] >= 0


def test_a_stream_is_one_span_on_either_side(address, spans):
    with RewardClient(address) as client, span("work"):
        assert len(list(client.score_many(PAIRS * 5))) == 15
    assert_joined(spans(3), STREAM)


def test_a_stream_that_its_caller_leaves_ends_its_spans(address, spans):
    with RewardClient(address) as client, span("work"):
        results = client.score_many(PAIRS * 50, window=2)
        next(results)
        results.close()
    assert_joined(spans(3), STREAM)


def test_a_refusal_keeps_its_words_and_marks_the_spans(address, spans):
    # The error leaves the span marked, too: `raises` is the outermost.
    with pytest.raises(InvalidArgument) as caught, RewardClient(address) as client, span("work"):
        client.rank("the film", [])
    assert caught.value.violations
    name = "/plaudit.v1.RewardService/Rank"
    found = spans(3)
    assert_joined(found, name)
    for kind in (SpanKind.CLIENT, SpanKind.SERVER):
        assert found[kind, name].attributes["rpc.grpc.status_code"] == 3
    assert found[SpanKind.CLIENT, name].status.status_code is StatusCode.ERROR
    assert found[SpanKind.INTERNAL, "work"].status.status_code is StatusCode.ERROR


def test_nobody_there_is_still_told_from_a_service_that_refuses(memory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
        with RewardClient(nobody, timeout=1) as client, pytest.raises(Unreachable):
            client.score(PAIRS)


def test_health_is_no_trace(address, spans):
    with HealthClient(address) as health, RewardClient(address) as client:
        assert health.check() == "serving"
        client.score(PAIRS)
    assert {name for _, name in spans(2)} == {SCORE}


def test_a_run_can_be_watched_by_a_traced_process(memory, capsys):
    board = Board("r")
    with serve_run(board, "sft", RunOptions(address="127.0.0.1:0"), StopSignal()):
        at = capsys.readouterr().out.split("listening on ")[1].split()[0]
        with TrainerClient(at) as client:
            events = client.watch_run()
            assert next(events).run.stage == "sft"
            events.close()
