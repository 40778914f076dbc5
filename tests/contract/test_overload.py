"""A service with a full queue: who is turned away, before any work, and who isn't."""

import asyncio
import threading

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from reward_server import options, pair

from plaudit.v1 import reference_pb2, reference_pb2_grpc, reward_pb2, reward_pb2_grpc
from services.batching import WAITING_CALLS, CallLimits
from services.line import LEAST_MEASURED_S, LONGEST_S
from services.oip import open_inference_pb2 as oip, open_inference_pb2_grpc
from services.reference.engine import ReferenceEngine
from services.reference.service import reference_service
from services.reward.engine import RewardEngine
from services.reward.service import reward_service
from services.room import RETRY_AFTER_S
from services.rpc.server import start_server

MOST = 256
LIMITS = CallLimits(max_items=MOST)
"""The queue holds two such calls, and 64 items more of light callers."""
BAD = pair("", "")
"""Whoever looks at it finds it wrong."""


class Held:
    """An engine that tokenises and computes when it is let, and knows how many texts it has tokenised."""

    def __init__(self, engine):
        self._engine = engine
        self.facts, self.token_budget = engine.facts, engine.token_budget
        self.may_encode, self.may_score = threading.Event(), threading.Event()
        self.may_encode.set()
        self.encoded = []

    def encode(self, item, *arguments, **named):
        assert self.may_encode.wait(60)
        self.encoded.append(item)
        return self._engine.encode(item, *arguments, **named)

    def score(self, batch):
        assert self.may_score.wait(60)
        return self._engine.score(batch)

    def logprobs(self, batch):
        assert self.may_score.wait(60)
        return self._engine.logprobs(batch)

    def let_go(self):
        self.may_encode.set()
        self.may_score.set()


@pytest.fixture
async def reward(tiny_reward):
    """(engine, channel) of a server whose engine is held."""
    engine = Held(RewardEngine(str(tiny_reward), "cpu", "float32", 1))
    async with start_server(reward_service(options(tiny_reward), LIMITS, lambda _: engine)) as server:
        await server.wait_ready()
        async with aio.insecure_channel(server.address) as channel:
            yield engine, channel
            engine.let_go()


def score(channel, count, caller, item=None, timeout=60):
    items = [item] * count if item else [pair(caller, f" {number}") for number in range(count)]
    stub = reward_pb2_grpc.RewardServiceStub(channel)
    return stub.Score(
        reward_pb2.ScoreRequest(items=items), timeout=timeout, metadata=[("x-plaudit-caller", caller)]
    )


async def waiting(channel):
    found = await reward_pb2_grpc.RewardServiceStub(channel).GetModel(reward_pb2.GetModelRequest())
    return found.queue.items


async def until(channel, count, read=waiting):
    async with asyncio.timeout(60):
        while True:
            if await read(channel) == count:
                return
            await asyncio.sleep(0.005)


async def fill(channel):
    calls = [score(channel, MOST, f"bulk {number}") for number in range(WAITING_CALLS)]
    await until(channel, WAITING_CALLS * MOST)
    return calls


def rank(channel):
    stub = reward_pb2_grpc.RewardServiceStub(channel)
    return stub.Rank(reward_pb2.RankRequest(text="", candidates=[""] * MOST), timeout=60)


def compare(channel):
    request = reward_pb2.CompareRequest(text="", first="", second="")
    return reward_pb2_grpc.RewardServiceStub(channel).Compare(request, timeout=60)


def infer(channel):
    tensors = [
        oip.ModelInferRequest.InferInputTensor(name=name, datatype="BYTES", shape=[MOST])
        for name in ("prompt", "response")
    ]
    for tensor in tensors:
        tensor.contents.bytes_contents.extend([b"\xff"] * MOST)
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    return stub.ModelInfer(oip.ModelInferRequest(model_name="reward", inputs=tensors), timeout=60)


async def refusal(call):
    """Seconds to come back in."""
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, caught.value.details()
    (detail,) = rpc_status.from_call(caught.value).details
    found = error_details_pb2.RetryInfo()
    assert detail.Unpack(found)
    return found.retry_delay.ToTimedelta().total_seconds()


async def test_a_full_queue_refuses_before_anything_is_looked_at(reward):
    """Every item is wrong, and nobody notices."""
    engine, channel = reward
    await fill(channel)
    for call in (score(channel, MOST, "another", BAD), rank(channel), infer(channel)):
        assert await refusal(call) > 0
    assert all(item.prompt.startswith("bulk") for item in engine.encoded)


async def test_light_callers_get_in_and_are_served_first(reward):
    engine, channel = reward
    bulk = await fill(channel)
    light = [score(channel, 1, f"light {number}") for number in range(3)]
    await until(channel, WAITING_CALLS * MOST + 3)
    engine.let_go()
    for call in light:
        assert (await call).results[0].WhichOneof("result") == "reward"
    assert await waiting(channel) > 0, "the others' turns come after it"
    assert [len((await call).results) for call in bulk] == [MOST] * WAITING_CALLS


async def test_small_calls_get_in_whoever_makes_them(reward):
    engine, channel = reward
    await fill(channel)
    small = [score(channel, 1, "bulk 0", pair("small", f" {number}")) for number in range(3)]
    await until(channel, WAITING_CALLS * MOST + 3)
    engine.let_go()
    await asyncio.gather(*small)


async def test_the_spare_room_has_an_end(reward):
    engine, channel = reward
    await fill(channel)
    calls = [asyncio.ensure_future(score(channel, 4, f"light {number}")) for number in range(40)]
    done, left = await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
    assert await refusal(next(iter(done))) > 0
    assert WAITING_CALLS * MOST < await waiting(channel) <= WAITING_CALLS * MOST * 9 // 8
    engine.let_go()
    await asyncio.gather(*left, return_exceptions=True)


async def test_health_is_asked_as_ever(reward):
    _, channel = reward
    await fill(channel)
    health = health_pb2_grpc.HealthStub(channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=60)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_who_is_turned_away_hears_how_fast_the_queue_empties(reward):
    engine, channel = reward
    bulk = await fill(channel)
    await asyncio.sleep(LEAST_MEASURED_S)  # a fast machine would have emptied it before that makes a rate
    engine.let_go()
    await asyncio.gather(*bulk)
    engine.may_score.clear()
    await fill(channel)
    told = [await refusal(score(channel, MOST, f"late {number}")) for number in range(3)]
    assert RETRY_AFTER_S not in told, "that is of a queue which has never been seen to empty"
    assert all(0 < seconds <= LONGEST_S for seconds in told)


async def test_one_item_is_not_tokenised_after_all_of_a_large_call(reward):
    engine, channel = reward
    engine.may_encode.clear()
    large = score(channel, MOST, "large")
    await until(channel, MOST)
    small = score(channel, 1, "small", pair("small", " one"))
    await until(channel, MOST + 1)
    engine.let_go()
    await asyncio.gather(large, small)
    place = [item.prompt for item in engine.encoded].index("small")
    assert 0 < place <= 64


async def waiting_sequences(channel):
    stub = reference_pb2_grpc.ReferenceServiceStub(channel)
    return (await stub.GetReference(reference_pb2.GetReferenceRequest())).queue.items


def logprobs(channel, token):
    sequences = [reference_pb2.LogprobSequence(token_ids=[token, token], start=1)] * MOST
    stub = reference_pb2_grpc.ReferenceServiceStub(channel)
    return stub.ComputeLogprobs(reference_pb2.ComputeLogprobsRequest(sequences=sequences), timeout=60)


async def test_a_full_reference_refuses_before_anything_is_looked_at(tiny_policy):
    engine = Held(ReferenceEngine(str(tiny_policy), "cpu", "float32", 1))
    async with start_server(reference_service(options(tiny_policy), LIMITS, lambda _: engine)) as server:
        await server.wait_ready()
        async with aio.insecure_channel(server.address) as channel:
            calls = [logprobs(channel, 5) for _ in range(WAITING_CALLS)]
            await until(channel, WAITING_CALLS * MOST, waiting_sequences)
            assert await refusal(logprobs(channel, (1 << 31) - 1)) > 0
            engine.let_go()
            await asyncio.gather(*calls)
