"""Clients to be awaited, under a tracer: their calls are joined to what they are made in, and always end."""

import asyncio

import pytest
from gateway_server import held_reward, options
from opentelemetry.trace import SpanKind, StatusCode
from tracers import assert_chain, spans_by_kind_and_name, spans_in_memory

from plaudit import AsyncRewardClient, InvalidArgument
from plaudit.clients import AsyncTrainerClient
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from trainer.board import Board
from trainer.config import RunOptions
from trainer.servicer import serve_run
from trainer.stopping import StopSignal
from trainer.tracing import span

SERVICE = "/plaudit.v1.RewardService"
PAIRS = [("the film", " is good"), ("a dull", " story"), ("what a", " joy")]


@pytest.fixture(scope="module")
def tracer():
    with spans_in_memory() as exporter:
        yield exporter


@pytest.fixture(scope="module")
def address(tracer, tiny_reward):
    with serve_in_background(lambda: reward_service(options(tiny_reward))) as server:
        yield server.address


@pytest.fixture
def memory(tracer, caplog):
    """The spans of one test; nothing was complained of meanwhile."""
    tracer.clear()
    yield tracer
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


def joined(found, name):
    """The client's span of a call within `work`."""
    outer, call = found[SpanKind.INTERNAL, "work"], found[SpanKind.CLIENT, name]
    assert_chain(outer, call, found[SpanKind.SERVER, name])
    return call


async def test_a_call_and_its_service_are_joined(address, memory):
    async with AsyncRewardClient(address) as client:
        with span("work"):
            await client.score(PAIRS)
    call = joined(spans_by_kind_and_name(memory, 3), f"{SERVICE}/Score")
    assert call.attributes["rpc.grpc.status_code"] == 0


async def test_a_call_that_may_be_made_twice_is_joined(address, memory):
    async with AsyncRewardClient(address, hedge_after=30) as client:
        with span("work"):
            await client.score(PAIRS)
    joined(spans_by_kind_and_name(memory, 3), f"{SERVICE}/Score")


async def test_a_stream_is_joined_though_threads_make_it(address, memory):
    async with AsyncRewardClient(address) as client:
        with span("work"):
            assert len([each async for each in client.score_many(PAIRS * 5)]) == 15
    joined(spans_by_kind_and_name(memory, 3), f"{SERVICE}/ScoreStream")


async def test_a_refusal_keeps_its_words(address, memory):
    async with AsyncRewardClient(address) as client:
        with pytest.raises(InvalidArgument) as caught, span("work"):
            await client.rank("the film", [])
    assert caught.value.violations
    call = joined(spans_by_kind_and_name(memory, 3), f"{SERVICE}/Rank")
    assert call.attributes["rpc.grpc.status_code"] == 3
    assert call.status.status_code is StatusCode.ERROR


async def test_a_call_that_is_cancelled_ends_its_span_and_the_work(memory, tiny_reward):
    with held_reward(tiny_reward) as reward:
        async with AsyncRewardClient(reward.address) as client:
            with span("work"):
                call = asyncio.create_task(client.score(PAIRS))
                await asyncio.to_thread(reward.engine.begun.wait, 10)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
        found = await asyncio.to_thread(spans_by_kind_and_name, memory, 3)
    call = joined(found, f"{SERVICE}/Score")
    assert call.status.description == "cancelled by the caller"


async def test_a_run_can_be_watched_to_its_end(memory, capsys):
    board = Board("r")
    with serve_run(board, "sft", RunOptions(address="127.0.0.1:0"), StopSignal()):
        at = capsys.readouterr().out.split("listening on ")[1].split()[0]
        async with AsyncTrainerClient(at) as client:
            board.tell(state="finished")
            assert [each.run.state async for each in client.watch_run()][-1] == "finished"
    watch = "/plaudit.v1.TrainerService/WatchRun"
    found = await asyncio.to_thread(spans_by_kind_and_name, memory, 2)
    assert_chain(found[SpanKind.CLIENT, watch], found[SpanKind.SERVER, watch])
