"""A reader that doesn't read is cut off with clear words, keeps nobody, and goes on where it was."""

import asyncio
import inspect
import time
from contextlib import asynccontextmanager

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from guarded_servers import trainer_service
from policy_server import detail
from reward_server import options, pair

from plaudit.clients import RewardClient, TrainerClient, trainer as trainer_client
from plaudit.v1 import reward_pb2, reward_pb2_grpc, trainer_pb2, trainer_pb2_grpc, weights_pb2
from services.policy.weights_servicer import WeightsServicer
from services.reward import stream
from services.reward.service import reward_service
from services.reward.servicer import RewardServicer
from services.rpc.background import serve_in_background
from services.rpc.server import ServerOptions, start_server
from trainer.board import EVENTS_KEPT, Board
from trainer.servicer import TrainerServicer

LIMIT_S = 0.1
SHORT = ServerOptions(unread_s=LIMIT_S)
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
"""Of a reader: gRPC takes little for it that it hasn't asked for."""
LONG = "x" * 20_000


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (what a server does inside can only be looked at)
            await asyncio.sleep(0.005)


def cut_off(error):
    """The words of a stream that ended because nobody read it."""
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == f"nobody read the results for {LIMIT_S} s; read them, or ask for fewer"
    assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    assert dict(error.trailing_metadata())["x-request-id"]
    return True


# --- ScoreStream ---


@pytest.fixture
async def served(tiny_reward):
    """The service, and its address."""
    service = reward_service(options(tiny_reward))
    async with start_server(service, SHORT) as server:
        await server.wait_ready()
        yield service, server.address


def handled(service, method, code):
    labels = {"grpc_type": "bidi_stream", "grpc_service": "plaudit.v1.RewardService"}
    return service.metrics.registry.get_sample_value(
        "grpc_server_handled_total", {**labels, "grpc_method": method, "grpc_code": code}
    )


async def test_a_stream_of_scores_that_nobody_reads_is_cut_off(served, monkeypatch):
    """By a blocking client: one of grpc.aio may be told otherwise while it writes."""
    monkeypatch.setattr(stream, "STREAM_WINDOW", 16)
    service, address = served
    sent = []

    def endless():
        while True:
            sent.append(len(sent))
            item = reward_pb2.StreamItem(item_id=f"{sent[-1]} {LONG}", item=pair("a", f"b{len(sent) % 50}"))
            yield reward_pb2.ScoreStreamRequest(items=[item])

    with grpc.insecure_channel(address, SMALL_WINDOW) as channel:
        call = reward_pb2_grpc.RewardServiceStub(channel).ScoreStream(endless(), timeout=60)
        await asyncio.to_thread(next, call)
        await until(lambda: handled(service, "ScoreStream", "ResourceExhausted") == 1)
        waiting = service.metrics.registry.get_sample_value
        # What was cancelled leaves the queue at the loop's next turn, and what runs when it has run.
        await until(lambda: waiting("plaudit_reward_waiting_items", {"model": "reward"}) == 0)
        assert waiting("plaudit_reward_waiting_bytes", {"model": "reward"}) == 0
        with RewardClient(address) as other:
            await asyncio.to_thread(other.score, [("others", "are served")])
        with pytest.raises(grpc.RpcError) as caught:
            await asyncio.to_thread(list, call)
        assert cut_off(caught.value)
    assert len(sent) < 5000, "what it could have sent was without end"


async def test_a_reader_that_takes_not_even_the_first_result_is_cut_off(served):
    """The headers were on their way with it, and are not sent again with the status."""
    service, address = served
    item = reward_pb2.StreamItem(item_id=LONG, item=pair("a", "b"))
    with grpc.insecure_channel(address, SMALL_WINDOW) as channel:
        requests = iter([reward_pb2.ScoreStreamRequest(items=[item])])
        call = reward_pb2_grpc.RewardServiceStub(channel).ScoreStream(requests, timeout=60)
        await until(lambda: handled(service, "ScoreStream", "ResourceExhausted") == 1)
        with pytest.raises(grpc.RpcError) as caught:
            await asyncio.to_thread(list, call)
        assert cut_off(caught.value)


async def test_a_consumer_of_score_many_may_take_its_time(tiny_reward):
    """The client reads for it: what comes meanwhile is bounded by the window, and nothing is lost."""
    texts = [("the film", " is good" * (number % 9 + 1)) for number in range(300)]
    service = reward_service(options(tiny_reward))

    def score(address):
        with RewardClient(address) as client:
            results = client.score_many(texts, window=64)
            found = [next(results)]
            time.sleep(3 * LIMIT_S)
            return found + list(results), client.score(texts[:9])

    async with start_server(service, SHORT) as server:
        await server.wait_ready()
        found, once = await asyncio.to_thread(score, server.address)
    assert [result.token_count for result in found] == [once[n % 9].token_count for n in range(300)]
    assert handled(service, "ScoreStream", "OK") == 1, "and it was one stream"


# --- streams of events ---


@asynccontextmanager
async def trainer_server(board):
    async with start_server(trainer_service(board), SHORT) as server:
        await server.wait_ready()
        yield server


def told(steps):
    """A board of a run that has ended, of events that fill a window soon."""
    board = Board("r")
    for step in range(steps):
        board.tell(step=step, checkpoint=LONG)
    board.tell(state="finished")
    return board


async def test_a_follower_of_a_run_that_does_not_read_is_cut_off_and_goes_on(monkeypatch):
    board = told(40)
    async with trainer_server(board) as server, aio.insecure_channel(server.address, SMALL_WINDOW) as small:
        stub = trainer_pb2_grpc.TrainerServiceStub(small)
        call = stub.WatchRun(trainer_pb2.WatchRunRequest(), timeout=60)
        last = (await call.read()).number
        await until(lambda: not board._watchers)
        with pytest.raises(aio.AioRpcError) as caught:
            while True:
                last = (await call.read()).number
        assert cut_off(caught.value)
        assert 1 <= last < 41
        again = stub.WatchRun(trainer_pb2.WatchRunRequest(run_id="r", after=last), timeout=60)
        assert [event.number async for event in again] == list(range(last + 1, 42))


def test_a_follower_that_takes_its_time_sees_every_event(monkeypatch):
    """Its stream is cut off, and opened again behind the last event that it has seen."""
    monkeypatch.setattr(trainer_client, "PAUSE_SECONDS", 0.01)
    board, opened = told(EVENTS_KEPT - 1), []
    watch = TrainerServicer.WatchRun

    async def counted(self, request, context):
        opened.append(request.after)
        async for event in watch(self, request, context):
            yield event

    monkeypatch.setattr(TrainerServicer, "WatchRun", counted)
    with (
        serve_in_background(lambda: trainer_service(board), SHORT) as server,
        TrainerClient(server.address) as client,
    ):
        events = client.watch_run(patience=LIMIT_S)
        numbers = [next(events).number]
        end = time.monotonic() + 20
        while board._watchers:
            assert time.monotonic() < end
            time.sleep(0.005)
        numbers += [event.number for event in events]
    assert numbers == list(range(1, EVENTS_KEPT + 1))
    assert len(opened) > 1
    assert opened == sorted(opened)


def test_every_stream_of_responses_is_one_that_yields():
    """Those are the methods that the time limit stands around (services/rpc/unread.py)."""
    servicers = {
        reward_pb2.DESCRIPTOR: {"RewardService": RewardServicer},
        trainer_pb2.DESCRIPTOR: {"TrainerService": TrainerServicer},
        weights_pb2.DESCRIPTOR: {"WeightsService": WeightsServicer},
    }
    found = [
        (method.name, inspect.isasyncgenfunction(getattr(servicer, method.name)))
        for file, services in servicers.items()
        for name, servicer in services.items()
        for method in file.services_by_name[name].methods
        if method.server_streaming
    ]
    assert found == [("ScoreStream", True), ("WatchRun", True), ("WatchPolicyVersion", True)]
