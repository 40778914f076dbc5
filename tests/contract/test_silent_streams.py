"""A caller that sends nothing is cut off with clear words, keeps nobody, and goes on with another stream."""

import asyncio
import threading
import time

import grpc
import pytest
from either_client import Blocking
from google.rpc import error_details_pb2
from grpc import aio
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from policy_fleet import model_options
from policy_server import detail
from push_steps import Eventful, Step
from reward_server import options, pair

from plaudit import AsyncRewardClient, AsyncWeightsClient, RewardClient, WeightsClient
from plaudit.clients.score_many import NOT_YET
from plaudit.v1 import reward_pb2, reward_pb2_grpc
from services.errors import Silent
from services.policy.service import policy_service
from services.reward.engine import RewardEngine
from services.reward.service import reward_service
from services.rpc import silent
from services.rpc.background import serve_in_background
from services.rpc.server import ServerOptions
from services.rpc.silent import SilentStreams, owes

LIMIT_S = 0.1
SHORT = ServerOptions(silent_s=LIMIT_S)
TEXTS = [("the film", " is good" * (number % 9 + 1)) for number in range(12)]


def cut_off(error):
    """The words of a stream that ended because nothing was sent."""
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details() == f"nothing was sent for {LIMIT_S} s; begin another stream"
    assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 0, "at once"
    assert dict(error.trailing_metadata())["x-request-id"]
    return True


class Served:
    """A service, its address, and how many of its streams were cut off."""

    def __init__(self, service, address):
        self.service, self.address = service, address

    def cut(self, method):
        """How many calls of a method have been cut off."""
        return sum(
            sample.value
            for family in self.service.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "grpc_server_handled_total"
            and (sample.labels["grpc_method"], sample.labels["grpc_code"]) == (method, "Unavailable")
        )

    def wait_cut(self, method, times):
        end = time.monotonic() + 20
        while self.cut(method) < times:
            assert time.monotonic() < end, "not cut off"
            time.sleep(0.002)


class Gate:
    """The real engine, which scores only while it is open."""

    def __init__(self, folder):
        self._engine = RewardEngine(str(folder), dtype="float32", threads=1)
        self.facts, self.token_budget = self._engine.facts, self._engine.token_budget
        self.encode = self._engine.encode
        self.opened = threading.Event()
        self.opened.set()

    def score(self, batch):
        assert self.opened.wait(20)
        return self._engine.score(batch)


def serving(make):
    """A server, and where it puts the service once that is made, in its own thread."""
    made = []

    def service():
        made.append(make())
        return made[0]

    return serve_in_background(service, SHORT), made


@pytest.fixture
def reward(tiny_reward):
    gate = Gate(tiny_reward)
    background, made = serving(lambda: reward_service(options(tiny_reward), load_engine=lambda _: gate))
    with background as server:
        served = Served(made[0], server.address)
        served.gate = gate
        yield served


def scoring(name):
    item = reward_pb2.StreamItem(item_id=name, item=pair("the film", " is good"))
    return reward_pb2.ScoreStreamRequest(items=[item])


# --- ScoreStream ---


@pytest.fixture
def waits(monkeypatch):
    """What the one stream's looks found owed; its first message may take as long as the machine needs."""
    begun, looks, within = [], [], silent._within

    def patient(seconds, owed):
        begun.append(seconds)
        looked = owed and (lambda: looks.append(owed()) or looks[-1])
        return within(20.0 if len(begun) == 1 else seconds, looked)

    monkeypatch.setattr(silent, "_within", patient)
    return looks


async def test_a_stream_of_scores_in_which_nothing_is_sent_is_cut_off(reward, waits):
    async with aio.insecure_channel(reward.address) as channel:
        call = reward_pb2_grpc.RewardServiceStub(channel).ScoreStream()
        await call.write(scoring("one"))
        assert (await call.read()).results[0].item_id == "one"
        with pytest.raises(aio.AioRpcError) as caught:
            await call.read()
    assert cut_off(caught.value)
    await asyncio.to_thread(reward.wait_cut, "ScoreStream", 1)


async def test_a_stream_that_never_begins_is_cut_off(reward):
    async with aio.insecure_channel(reward.address) as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await reward_pb2_grpc.RewardServiceStub(channel).ScoreStream().read()
    assert cut_off(caught.value)


async def test_a_caller_may_wait_for_what_it_is_owed(reward, waits):
    """However long that takes, and may be silent for the whole time once more when it has it."""
    reward.gate.opened.clear()
    async with aio.insecure_channel(reward.address) as channel:
        call = reward_pb2_grpc.RewardServiceStub(channel).ScoreStream()
        await call.write(scoring("one"))
        async with asyncio.timeout(20):
            while waits.count(True) < 3 * silent.LOOKS:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        reward.gate.opened.set()
        assert (await call.read()).results[0].item_id == "one"
        with pytest.raises(aio.AioRpcError) as caught:
            await call.read()
    assert cut_off(caught.value)
    assert waits[-1] is False


def slowly(served, texts, while_nothing_comes=()):
    """The texts; now and then none comes until the stream has been cut off."""
    for number, text in enumerate(texts):
        if number in (1, 5, 6):
            yield from while_nothing_comes
            served.wait_cut("ScoreStream", {1: 1, 5: 2, 6: 3}[number])
            yield from while_nothing_comes
        yield text


@pytest.mark.parametrize("heartbeat", [(), (NOT_YET,)], ids=["blocking", "with heartbeats"])
def test_items_may_come_slowly(reward, heartbeat):
    """What is read from a pipe for hours: the next item opens another stream, and nothing is lost."""
    with RewardClient(reward.address) as client:
        found = list(client.score_many(slowly(reward, TEXTS, heartbeat), window=1))
        once = client.score(TEXTS)
    assert [result.token_count for result in found] == [result.token_count for result in once]


async def test_items_that_are_awaited_may_come_slowly(reward):
    async def awaited():
        for number, text in enumerate(TEXTS):
            if number == 5:
                await asyncio.to_thread(reward.wait_cut, "ScoreStream", 1)
            yield text

    async with AsyncRewardClient(reward.address) as client:
        found = [result async for result in client.score_many(awaited())]
        once = await client.score(TEXTS)
    assert [result.token_count for result in found] == [result.token_count for result in once]


# --- other streams ---


@pytest.mark.parametrize("kind", [WeightsClient, AsyncWeightsClient])
def test_a_push_whose_bytes_come_slowly_goes_on(tiny_policy, kind):
    """As after a line that was cut: with what the server doesn't have."""
    background, made = serving(lambda: policy_service(model_options(tiny_policy)))
    step = Step(tiny_policy)
    with background as server:
        served = Served(made[0], server.address)
        act = {2: lambda: served.wait_cut("PushChunks", 1)}
        pieces = Eventful(step.pieces(len(step.data) // 4), lambda number: act.get(number, int)())
        opened = kind(server.address)
        with opened if kind is WeightsClient else Blocking(opened) as client:
            assert client.push(step.manifest(), pieces).step == 1


async def test_every_method_that_reads_a_stream_is_meant(reward, waits):
    """Whoever wrote it: gRPC's own reflection, too."""
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    async with aio.insecure_channel(reward.address) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(question)
        assert (await call.read()).list_services_response.service
        with pytest.raises(aio.AioRpcError) as caught:
            await call.read()
    assert cut_off(caught.value)


# --- alone ---


async def test_messages_in_time_pass_and_the_end_is_the_end():
    async def stream():
        for number in range(100):
            await asyncio.sleep(0)
            yield number

    take = SilentStreams(5.0).taking(None, by_stream=True)
    assert [number async for number in take(stream())] == list(range(100))


def test_a_single_request_is_left_alone():
    assert SilentStreams(5.0).taking(None, by_stream=False) is None


async def test_silence_counts_from_the_last_look_that_found_something_owed():
    looks = []

    async def nothing():
        await asyncio.Event().wait()
        yield

    owes.set(lambda: looks.append(None) or len(looks) < 10)
    with pytest.raises(Silent, match=r"nothing was sent for 0\.04 s"):
        await anext(SilentStreams(0.04).taking(None, by_stream=True)(nothing()))
    assert len(looks) >= 10


async def test_what_the_stream_raises_comes_out():
    async def broken():
        yield 1
        raise ValueError("broken")

    taken = SilentStreams(5.0).taking(None, by_stream=True)(broken())
    assert await anext(taken) == 1
    with pytest.raises(ValueError, match="broken"):
        await anext(taken)
