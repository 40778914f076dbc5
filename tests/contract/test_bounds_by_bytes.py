"""Requests are bounded by their bytes: each before it is read, and all together until they are answered."""

import asyncio
import re
import threading
from contextlib import asynccontextmanager

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from policy_server import detail, policy_server, refused, violations
from reward_server import GOOD, pair

from plaudit.v1 import policy_pb2, reference_pb2, reference_pb2_grpc, reward_pb2, reward_pb2_grpc, types_pb2
from services.batching import WAITING_CALLS, CallLimits
from services.reference.engine import ReferenceEngine
from services.reference.service import reference_service
from services.reward.engine import RewardEngine
from services.reward.service import reward_service
from services.rpc.command import ModelOptions
from services.rpc.server import start_server

MOST = 300
"""Bytes of a request, at most; a queue holds several times as many."""
LIMITS = CallLimits(max_bytes=MOST)
EVERY_KIND = {
    "reward": ("RewardService/Score", "RewardService/ScoreStream", "RewardService/GetModel"),
    "reference": ("ReferenceService/ComputeLogprobs",),
    "policy": ("PolicyService/Generate", "WeightsService/BeginPush", "WeightsService/PushChunks"),
}


class Held:
    """An engine that computes once it is let go."""

    def __init__(self, engine):
        self._engine = engine
        self.facts, self.token_budget = engine.facts, engine.token_budget
        self.encode = getattr(engine, "encode", None)
        self.let_go = threading.Event()

    def score(self, batch):
        self.let_go.wait()
        return self._engine.score(batch)

    def logprobs(self, batch):
        self.let_go.wait()
        return self._engine.logprobs(batch)


@asynccontextmanager
async def held_server(service, engine):
    """The service, its channel, and the queue's bytes as they are exported."""
    (area,) = service.full_names[0].removeprefix("plaudit.v1.").removesuffix("Service").lower().split()
    labels = {"model": "reward"} if area == "reward" else {}

    def waiting():
        return service.metrics.registry.get_sample_value(f"plaudit_{area}_waiting_bytes", labels)

    async with start_server(service) as server:
        await server.wait_ready()
        async with aio.insecure_channel(server.address) as channel:
            try:
                yield channel, waiting
            finally:
                engine.let_go.set()


@pytest.fixture
async def reward(tiny_reward):
    engine = Held(RewardEngine(str(tiny_reward), dtype="float32", threads=1))
    async with held_server(reward_service(ModelOptions("m"), LIMITS, lambda _: engine), engine) as found:
        yield *found, engine.let_go


@pytest.fixture
async def reference(tiny_policy):
    engine = Held(ReferenceEngine(str(tiny_policy), dtype="float32", threads=1))
    async with held_server(reference_service(ModelOptions("m"), LIMITS, lambda _: engine), engine) as found:
        yield *found, engine.let_go


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (what a server does inside can only be looked at)
            await asyncio.sleep(0.001)


def score_request(size, text="x"):
    """Of exactly `size` bytes: one item, which the model has to cut."""
    options = reward_pb2.ScoreOptions(truncation=reward_pb2.TRUNCATION_LEFT)
    request = reward_pb2.ScoreRequest(items=[pair(text, "y")], options=options)
    return request if request.ByteSize() == size else score_request(size, text + "x")


async def large_requests_are_refused(channel, methods):
    """Bytes that are no message: were they read, the words would be others."""
    for method in methods:
        path = f"/plaudit.v1.{method}"
        if method.endswith(("ScoreStream", "PushChunks")):
            call = channel.stream_stream(path)(iter([b"\xff" * (MOST + 1)]), timeout=20).read()
        else:
            call = channel.unary_unary(path)(b"\xff" * (MOST + 1), timeout=20)
        error = await refused(call)
        assert violations(error) == {"request": "holds 301 bytes, a call at most 300; split it"}, method


async def test_a_large_request_of_a_reward_server_is_refused_unread(reward):
    channel, _, let_go = reward
    let_go.set()
    await large_requests_are_refused(channel, EVERY_KIND["reward"])
    stub = reward_pb2_grpc.RewardServiceStub(channel)
    assert (await stub.Score(score_request(MOST), timeout=20)).results[0].HasField("reward")
    limits = (await stub.GetModel(reward_pb2.GetModelRequest(), timeout=20)).limits
    assert (limits.max_request_bytes, limits.max_message_bytes) == (MOST, 64 << 20)


async def test_a_large_request_of_a_reference_server_is_refused_unread(reference):
    channel, _, _ = reference
    await large_requests_are_refused(channel, EVERY_KIND["reference"])
    stub = reference_pb2_grpc.ReferenceServiceStub(channel)
    found = await stub.GetReference(reference_pb2.GetReferenceRequest(), timeout=20)
    assert found.limits.max_request_bytes == MOST


async def test_a_large_request_of_a_policy_server_is_refused_unread(tiny_policy):
    async with policy_server(tiny_policy, limits=LIMITS) as caller:
        await large_requests_are_refused(caller.channel, EVERY_KIND["policy"])
        assert (await caller.describe()).limits.max_request_bytes == MOST


async def test_candidates_count_with_the_prompt_that_they_share(reward):
    """Each is tokenised with it: a message of a hundred bytes could ask for the work of a thousand."""
    channel, _, let_go = reward
    let_go.set()
    stub = reward_pb2_grpc.RewardServiceStub(channel)
    turns = [types_pb2.ChatMessage(role="user", content="x" * 99)]
    for prompt in ({"text": "x" * 99}, {"chat": types_pb2.Chat(messages=turns)}):
        error = await refused(stub.Rank(reward_pb2.RankRequest(candidates="abcd", **prompt), timeout=20))
        ((field, description),) = violations(error).items()
        assert (field, description.split(",")[0]) == ("candidates", "hold 400 characters")
        assert "split it" in description
    ranked = await stub.Rank(reward_pb2.RankRequest(text="x" * 99, candidates="abc"), timeout=20)
    assert len(ranked.ranked) == 3


def says_when_to_come_back(error):
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert re.search(r"wait already, in \d+ bytes; try again later", error.details())
    assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) >= 1


async def test_the_rewards_queue_is_bounded_by_bytes(reward):
    channel, waiting, let_go = reward
    stub = reward_pb2_grpc.RewardServiceStub(channel)
    calls = [stub.Score(score_request(MOST), timeout=60) for _ in range(WAITING_CALLS)]
    await until(lambda: waiting() == WAITING_CALLS * MOST)
    says_when_to_come_back(await refused(stub.Score(score_request(200), timeout=20)))
    depth = (await stub.GetModel(reward_pb2.GetModelRequest(), timeout=20)).queue
    assert (depth.items, depth.bytes) == (WAITING_CALLS, WAITING_CALLS * MOST)
    let_go.set()
    assert all(answer.results[0].HasField("reward") for answer in await asyncio.gather(*calls))
    assert waiting() == 0
    await stub.Score(score_request(50), timeout=20)


async def test_a_cancelled_call_frees_its_bytes(reward):
    channel, waiting, _ = reward
    stub = reward_pb2_grpc.RewardServiceStub(channel)
    call = stub.Score(score_request(MOST), timeout=60)
    await until(lambda: waiting() == MOST)
    call.cancel()
    await until(lambda: waiting() == 0)


async def test_a_stream_waits_until_there_is_room_for_its_bytes(reward):
    channel, waiting, let_go = reward
    items = [reward_pb2.StreamItem(item_id=f"{number:200}", item=GOOD) for number in range(12)]
    stub = reward_pb2_grpc.RewardServiceStub(channel)
    call = stub.ScoreStream(iter(reward_pb2.ScoreStreamRequest(items=[one]) for one in items), timeout=60)
    await until(lambda: waiting() > WAITING_CALLS * MOST - 220)
    assert waiting() <= WAITING_CALLS * MOST * 9 / 8, "with the spare part"
    let_go.set()
    names = [result.item_id async for response in call for result in response.results]
    assert sorted(names) == [item.item_id for item in items]
    assert waiting() == 0


async def test_the_references_queue_is_bounded_by_bytes(reference):
    channel, waiting, let_go = reference
    stub = reference_pb2_grpc.ReferenceServiceStub(channel)
    sequences = [reference_pb2.LogprobSequence(token_ids=[5] * 100, start=1)] * 2
    request = reference_pb2.ComputeLogprobsRequest(sequences=sequences)
    calls = [stub.ComputeLogprobs(request, timeout=60) for _ in range(12)]
    fit = WAITING_CALLS * MOST // request.ByteSize()
    await until(lambda: sum(call.done() for call in calls) >= 12 - fit - 1)  # one more in the spare part
    found = await stub.GetReference(reference_pb2.GetReferenceRequest(), timeout=20)
    assert found.queue.bytes == waiting()
    assert fit <= waiting() / request.ByteSize() <= fit + 1
    let_go.set()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    refusals = [error for error in ended if isinstance(error, grpc.RpcError)]
    assert 12 - fit - 1 <= len(refusals) <= 12 - fit
    for error in refusals:
        says_when_to_come_back(error)
    assert waiting() == 0


async def test_the_policys_queue_is_bounded_by_bytes(tiny_policy):
    async with policy_server(tiny_policy, limits=LIMITS) as caller:
        prompt = policy_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=[5]), seed=1)
        request = policy_pb2.GenerateRequest(
            prompts=[prompt] * 25, sampling=policy_pb2.SamplingParams(max_new_tokens=100)
        )
        calls = [caller.policy.Generate(request, timeout=60) for _ in range(12)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        refusals = [error for error in ended if isinstance(error, grpc.RpcError)]
        assert 1 <= len(refusals) <= 12 - WAITING_CALLS
        for error in refusals:
            says_when_to_come_back(error)
        assert caller.metric("plaudit_policy_waiting_bytes") == 0
