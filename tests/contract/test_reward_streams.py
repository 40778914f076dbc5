"""ScoreStream: every item is answered once, as soon as it is done; a full queue makes the caller wait."""

import asyncio
import threading

import grpc
import pytest
from grpc import aio
from hypothesis import HealthCheck, given, settings, strategies as st
from reward_server import GOOD, chat, ids, options, pair, serving, violations

from plaudit.v1 import reward_pb2, reward_pb2_grpc
from services.batching import WAITING_CALLS, CallLimits
from services.reward import stream
from services.reward.engine import RewardEngine
from services.reward.service import reward_service
from services.rpc.command import ModelOptions
from services.rpc.server import start_server


def message(*items, **fields):
    named = [reward_pb2.StreamItem(item_id=name, item=item) for name, item in items]
    return reward_pb2.ScoreStreamRequest(items=named, **fields)


async def score_all(client, *messages, within=30):
    """(item id, result) pairs as they came, and the responses that brought them."""
    responses = [one async for one in client.stub.ScoreStream(iter(messages), timeout=within)]
    return [(result.item_id, result.result) for one in responses for result in one.results], responses


async def refused(client, *messages, within=30):
    with pytest.raises(aio.AioRpcError) as caught:
        await score_all(client, *messages, within=within)
    return caught.value


@pytest.fixture
async def client(tiny_reward):
    async for made in serving(reward_service(options(tiny_reward))):
        yield made


async def test_a_stream_scores_what_a_call_scores(client):
    items = [pair("the film", " is good" * n) for n in (5, 1, 9, 2, 7, 1)]
    expected = (await client.score(*items)).results
    named = [(f"item {index}", item) for index, item in enumerate(items)]
    results, responses = await score_all(client, message(*named[:1]), message(*named[1:]))
    assert sorted(name for name, _ in results) == [name for name, _ in named]
    for name, result in results:
        one = expected[int(name.removeprefix("item "))].reward
        assert result.reward.raw_reward == pytest.approx(one.raw_reward, abs=1e-5)
        assert result.reward.token_count == one.token_count
    model = (await client.model()).model
    assert all(one.model == model for one in responses)
    assert all(one.timing.compute_seconds > 0 for one in responses)


async def test_an_empty_stream_ends_well(client):
    assert await score_all(client) == ([], [])
    assert await score_all(client, message()) == ([], [])


async def test_bad_items_have_errors_of_their_own(client):
    bad = {
        "empty": (pair("a", ""), "item.pair.response"),
        "none": (reward_pb2.ScoreItem(), "item"),
        "long": (pair("a", "é" * 500), "item"),
        "turns": (chat(), "item.chat.messages"),
    }
    named = [("good", GOOD), *((name, item) for name, (item, _) in bad.items()), ("also good", GOOD)]
    results = dict((await score_all(client, message(*named)))[0])
    assert results.keys() == dict(named).keys()
    assert results["good"].reward.reward == results["also good"].reward.reward
    for name, (_, field) in bad.items():
        assert results[name].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert results[name].error.field_violations[0].field == field


async def test_ids_need_the_digest_in_the_first_message(client):
    digest = (await client.model()).model.tokenizer_sha256
    results, _ = await score_all(client, message(tokenizer_sha256=digest), message(("a", ids(5, 6))))
    assert results[0][1].reward.token_count == 2
    error = await refused(client, message(("a", ids(5, 6))))
    assert violations(error)[0][0] == "tokenizer_sha256"
    # What is refused is sent last: grpc.aio clients lose the status of a stream that ends while they write.
    error = await refused(client, message(("a", GOOD)), message(("b", ids(5)), tokenizer_sha256=digest))
    assert violations(error)[0][0] == "tokenizer_sha256"
    error = await refused(client, message(("a", ids(5)), tokenizer_sha256="0" * 64))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_options_of_the_first_message_count(client):
    long = pair("a", " is good" * 200)
    left = reward_pb2.ScoreOptions(truncation=reward_pb2.TRUNCATION_LEFT)
    results, _ = await score_all(client, message(options=left), message(("long", long)))
    assert results[0][1].reward.truncation == reward_pb2.TRUNCATION_LEFT
    assert results[0][1].reward.token_count == 128
    unknown = reward_pb2.ScoreOptions(model="other")
    assert (await refused(client, message(options=unknown))).code() is grpc.StatusCode.NOT_FOUND


async def test_an_id_that_is_in_flight_is_refused(client):
    error = await refused(client, message(("a", GOOD), ("b", GOOD), ("a", GOOD)))
    assert violations(error)[0][0] == "items[2].item_id"
    assert "'a' is in flight" in violations(error)[0][1]
    await client.still_serves()


async def test_an_id_may_come_again_after_its_result(client):
    call = client.stub.ScoreStream(timeout=30)
    for _ in range(2):
        await call.write(message(("same", GOOD)))
        assert (await call.read()).results[0].item_id == "same"
    await call.done_writing()
    assert await call.read() is aio.EOF


async def test_a_message_above_the_window_or_the_calls_limit_is_refused(client, monkeypatch):
    monkeypatch.setattr(stream, "STREAM_WINDOW", 2)
    error = await refused(client, message(*((str(n), GOOD) for n in range(3))))
    assert violations(error) == [("items", "holds 3 items, more than the stream's window of 2; split it")]
    await client.still_serves()


class Gate:
    """An engine that scores only while it is open, and counts."""

    def __init__(self, folder):
        self._engine = RewardEngine(str(folder), dtype="float32", threads=1)
        self.facts, self.token_budget = self._engine.facts, self._engine.token_budget
        self.encode = self._engine.encode
        self.begun, self.opened = threading.Event(), threading.Event()
        self.scored = 0

    def score(self, batch):
        self.begun.set()
        self.opened.wait()
        self.scored += len(batch)
        return self._engine.score(batch)


MOST = 4
"""Items of a call."""
FULL = WAITING_CALLS * MOST


@pytest.fixture
async def gated(tiny_reward):
    gate = Gate(tiny_reward)
    service = reward_service(ModelOptions("m"), CallLimits(max_items=MOST), lambda _: gate)
    async for client in serving(service):
        client.gate, client.service = gate, service
        yield client
        gate.opened.set()


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


WAITING = ("plaudit_reward_waiting_items", {"model": "reward"})


def waiting(client):
    return client.service.metrics.registry.get_sample_value(*WAITING)


async def test_reading_stops_at_the_window_and_goes_on(gated, monkeypatch):
    monkeypatch.setattr(stream, "STREAM_WINDOW", 6)
    read = []

    def messages():
        for number in range(40):
            read.append(number)
            yield message((str(number), pair("a", f"b{number}")))

    call = gated.stub.ScoreStream(messages(), timeout=60)
    await until(lambda: waiting(gated) == 6)
    await asyncio.sleep(0.2)
    assert waiting(gated) == 6
    gated.gate.opened.set()
    names = [result.item_id async for one in call for result in one.results]
    assert sorted(names, key=int) == [str(number) for number in range(40)]


async def test_a_full_queue_makes_a_stream_wait_and_turns_a_call_away(gated):
    call = gated.stub.ScoreStream(
        iter([message((str(number), pair("a", f"b{number}"))) for number in range(60)]), timeout=60
    )
    await until(lambda: waiting(gated) == FULL)
    error = await gated.refused(GOOD)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    gated.gate.opened.set()
    names = [result.item_id async for one in call for result in one.results]
    assert len(names) == len(set(names)) == 60
    await gated.still_serves()


async def test_a_stream_that_ends_early_leaves_nothing(gated):
    call = gated.stub.ScoreStream(
        iter([message((str(number), pair("a", f"b{number}"))) for number in range(60)]), timeout=60
    )
    await until(lambda: waiting(gated) == FULL)
    call.cancel()
    await until(lambda: waiting(gated) <= FULL and not gated.gate.scored)
    gated.gate.opened.set()
    await until(lambda: waiting(gated) == 0)
    assert gated.gate.scored < 60
    await gated.still_serves()
    codes = {
        sample.labels["grpc_code"]
        for family in gated.service.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "grpc_server_handled_total" and sample.labels["grpc_method"] == "ScoreStream"
    }
    assert codes == {"Cancelled"}


async def test_a_single_call_is_answered_while_a_stream_fills_the_queue(gated, monkeypatch):
    monkeypatch.setattr(stream, "STREAM_WINDOW", FULL // 2)  # leaves room for others

    def messages():
        for number in range(300):
            yield message((str(number), pair("a", f"b{number}" * (number % 9 + 1))))

    gated.gate.token_budget = 8
    call = gated.stub.ScoreStream(messages(), timeout=60)
    await until(lambda: waiting(gated) >= FULL // 2)
    single = asyncio.create_task(gated.score(GOOD))
    await until(lambda: waiting(gated) > FULL // 2)
    gated.gate.opened.set()
    await single
    assert gated.gate.scored < 300
    names = [result.item_id async for one in call for result in one.results]
    assert len(names) == 300


async def test_an_engine_that_fails_ends_the_stream_and_the_next_is_served(gated):
    works = gated.gate.score

    def fail(batch):
        raise RuntimeError("out of memory at 0x7f")

    gated.gate.opened.set()
    gated.gate.score = fail
    error = await refused(gated, message(("a", GOOD)))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "memory" not in error.details()
    gated.gate.score = works
    await gated.still_serves()


async def test_a_server_that_shuts_down_answers_what_it_read_and_ends_the_stream(tiny_reward):
    gate = Gate(tiny_reward)
    async with start_server(reward_service(ModelOptions("m"), load_engine=lambda _: gate)) as server:
        await server.wait_ready()
        async with aio.insecure_channel(server.address) as channel:
            call = reward_pb2_grpc.RewardServiceStub(channel).ScoreStream(timeout=30)
            await call.write(message(("read", GOOD)))
            await until(gate.begun.is_set)  # before, it may be in the tokeniser's hands, and is for another
            stopping = asyncio.create_task(server.stop())
            await asyncio.sleep(0.05)
            gate.opened.set()
            assert (await call.read()).results[0].item_id == "read"
            with pytest.raises(aio.AioRpcError, match="shutting down") as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            await asyncio.wait_for(stopping, 10)


async def test_a_stream_has_a_deadline(gated):
    error = await refused(gated, message(("a", GOOD)), within=0.3)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: waiting(gated) <= 1)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 12), max_size=6), max_size=8))
def test_every_item_is_answered_once_however_it_is_cut_into_messages(tiny_reward, cut):
    async def run():
        async for client in serving(reward_service(options(tiny_reward))):
            number, messages, sent = 0, [], []
            for lengths in cut:
                items = []
                for length in lengths:
                    items.append((str(number), pair("a", "b" * length)))  # an empty one is an error
                    number += 1
                messages.append(message(*items))
                sent += items
            results = dict((await score_all(client, *messages))[0])
            assert results.keys() == dict(sent).keys()
            for name, item in sent:
                kind = "reward" if item.pair.response else "error"
                assert results[name].WhichOneof("result") == kind

    asyncio.run(run())
