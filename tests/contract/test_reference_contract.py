"""ReferenceService over a real server: the log-probabilities are Hugging Face's, bad fields are named."""

import asyncio
import math
import threading

import grpc
import pytest
import torch
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from transformers import AutoModelForCausalLM

from plaudit.v1 import reference_pb2, reference_pb2_grpc, types_pb2
from services.batching import CallLimits
from services.reference.engine import ReferenceEngine
from services.reference.service import reference_service
from services.rpc.command import ModelOptions
from services.rpc.server import start_server


def options(folder, dtype="float32", device="auto"):
    return ModelOptions(str(folder), device, dtype, 1)


def sequence(token_ids, start):
    return reference_pb2.LogprobSequence(token_ids=token_ids, start=start)


GOOD = sequence([5, 6, 7, 8], 2)


class Client:
    """The stub, with what tests ask for again and again."""

    def __init__(self, channel):
        self.stub = reference_pb2_grpc.ReferenceServiceStub(channel)

    async def logprobs(self, *sequences, within=30, **fields):
        request = reference_pb2.ComputeLogprobsRequest(sequences=sequences, **fields)
        return await self.stub.ComputeLogprobs(request, timeout=within)

    async def describe(self):
        return await self.stub.GetReference(reference_pb2.GetReferenceRequest())

    async def refused(self, *sequences, **fields):
        with pytest.raises(aio.AioRpcError) as caught:
            await self.logprobs(*sequences, **fields)
        return caught.value

    async def still_serves(self):
        assert len((await self.logprobs(GOOD)).sequences[0].logprobs) == 2


async def serving(service):
    async with start_server(service) as server:
        await server.wait_ready()
        async with aio.insecure_channel(server.address) as channel:
            yield Client(channel)


@pytest.fixture
async def client(tiny_policy):
    async for made in serving(reference_service(options(tiny_policy))):
        yield made


def hugging_face_logprobs(folder, token_ids, start, temperature=1.0, dtype=torch.float32):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([token_ids])).logits[0]
    table = (logits / temperature).log_softmax(dim=-1)
    return [table[at - 1, token_ids[at]].item() for at in range(start, len(token_ids))]


def violations(error):
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    found = error_details_pb2.BadRequest()
    assert rpc_status.from_call(error).details[0].Unpack(found)
    return [(field.field, field.description) for field in found.field_violations]


# --- numbers ---


@pytest.mark.parametrize("temperature", [None, 0.7, 1.0, 2.5])
async def test_logprobs_are_hugging_faces_own(client, tiny_policy, temperature):
    asked = [([5, 6, 7, 8, 2], 1), ([9, 2], 1), (list(range(3, 123)), 100), ([7] * 128, 127), ([4, 5, 6], 2)]
    fields = {} if temperature is None else {"temperature": temperature}
    response = await client.logprobs(*(sequence(*one) for one in asked), **fields)
    assert len(response.sequences) == len(asked)
    for found, (token_ids, start) in zip(response.sequences, asked, strict=True):
        expected = hugging_face_logprobs(tiny_policy, token_ids, start, temperature or 1.0)
        assert list(found.logprobs) == pytest.approx(expected, abs=1e-5)


async def test_float64_is_served_and_answers_in_float32(tiny_policy):
    async for client in serving(reference_service(options(tiny_policy, "float64", "cpu"))):
        assert (await client.describe()).dtype == types_pb2.DATA_TYPE_F64
        expected = hugging_face_logprobs(tiny_policy, [5, 6, 7, 8], 2, dtype=torch.float64)
        found = (await client.logprobs(GOOD)).sequences[0].logprobs
        assert list(found) == torch.tensor(expected, dtype=torch.float32).tolist()


async def test_the_same_request_gives_the_same_bits(client):
    asked = [sequence([5 + n, 6, 7, 8, 9][: 2 + n % 4], 1) for n in range(20)]
    assert await client.logprobs(*asked) == await client.logprobs(*asked)


async def test_get_reference_describes_what_is_loaded(client, tiny_policy):
    found = await client.describe()
    assert found.model.model_id == str(tiny_policy)
    assert (found.model.run_id, found.model.step) == ("", 0)
    assert len(found.model.weights_sha256) == len(found.model.tokenizer_sha256) == 64
    assert found.dtype == types_pb2.DATA_TYPE_F32
    assert (found.vocabulary_size, found.context_length) == (300, 128)
    assert found.limits.max_items >= 1024
    assert (await client.logprobs(GOOD)).model == found.model


# --- bad input ---

BAD = {
    "no tokens": (sequence([], 1), "sequences[1].token_ids", "holds 0 tokens"),
    "one token": (sequence([5], 1), "sequences[1].token_ids", "holds 1 tokens"),
    "start 0": (sequence([5, 6, 7], 0), "sequences[1].start", "is 0; use 1 to 2"),
    "start at the end": (sequence([5, 6, 7], 3), "sequences[1].start", "is 3; use 1 to 2"),
    "start beyond the end": (sequence([5, 6, 7], 2**32 - 1), "sequences[1].start", "use 1 to 2"),
    "id outside the vocabulary": (
        sequence([5, 6, 300, 301], 1), "sequences[1].token_ids[2]", "is 300, the vocabulary ends at 299"
    ),
    "largest id": (sequence([5, 2**32 - 1], 1), "sequences[1].token_ids[1]", "is 4294967295"),
    "beyond the context": (
        sequence([5] * 129, 1), "sequences[1].token_ids", "holds 129 tokens, the model reads at most 128"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("bad", "field", "words"), BAD.values(), ids=BAD.keys())
async def test_a_bad_sequence_is_named_and_the_service_goes_on(client, bad, field, words):
    ((found, description),) = violations(await client.refused(GOOD, bad))
    assert found == field
    assert words in description
    await client.still_serves()


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e-45, 9e-5, math.nan, math.inf])
async def test_a_temperature_must_be_one_that_logits_can_be_divided_by(client, temperature):
    ((field, description),) = violations(await client.refused(GOOD, temperature=temperature))
    assert field == "temperature"
    assert "use 0.0001 or more" in description
    assert len((await client.logprobs(GOOD, temperature=1e-4)).sequences) == 1
    await client.still_serves()


async def test_several_faults_are_told_at_once_but_not_a_thousand(client):
    found = violations(await client.refused(*[sequence([5, 999], 5)] * 1000))
    assert len(found) == 8
    assert [field for field, _ in found[:3]] == [
        "sequences[0].start", "sequences[0].token_ids[1]", "sequences[1].start"
    ]  # fmt: skip


async def test_an_empty_call_is_refused(client):
    assert violations(await client.refused()) == [("sequences", "is empty; send at least one")]


async def test_the_calls_limits_are_stated_and_held(tiny_policy):
    service = reference_service(options(tiny_policy), CallLimits(max_items=2, max_tokens=8))
    async for client in serving(service):
        limits = (await client.describe()).limits
        assert (limits.max_items, limits.max_tokens) == (2, 8)
        for error in (await client.refused(GOOD, GOOD, GOOD), await client.refused(sequence([5] * 9, 1))):
            ((field, description),) = violations(error)
            assert field == "sequences"
            assert "split it" in description
        assert len((await client.logprobs(GOOD, GOOD)).sequences) == 2


# --- what the model may do wrong ---


class Odd:
    """An engine whose answers a test decides."""

    def __init__(self, engine, logprobs):
        self.facts, self.token_budget = engine.facts, engine.token_budget
        self.logprobs = logprobs


@pytest.fixture
def engine(tiny_policy):
    return ReferenceEngine(str(tiny_policy), dtype="float32", threads=1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
async def test_a_logprob_that_is_no_number_fails_the_call(engine, value):
    answers = iter([[[-1.0, value]], [[-1.0, -2.0]]])
    service = reference_service(
        ModelOptions("m"), load_engine=lambda _: Odd(engine, lambda items: next(answers))
    )
    async for client in serving(service):
        assert (await client.refused(GOOD)).code() is grpc.StatusCode.INTERNAL
        await client.still_serves()


async def test_a_call_whose_deadline_passed_while_it_waited_never_runs(engine):
    started, opened, seen = threading.Event(), threading.Event(), []

    def logprobs(items):
        started.set()
        opened.wait()
        seen.extend(item.ids for item in items)
        return engine.logprobs(items)

    service = reference_service(ModelOptions("m"), load_engine=lambda _: Odd(engine, logprobs))
    async for client in serving(service):
        first = asyncio.create_task(client.logprobs(GOOD))
        try:
            assert await asyncio.to_thread(started.wait, 10)
            error = await client.refused(sequence([9, 9], 1), within=0.2)
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        finally:
            opened.set()
        assert len((await first).sequences) == 1
        await client.still_serves()
    assert [9, 9] not in seen


async def test_what_was_computed_is_counted(tiny_policy):
    service = reference_service(options(tiny_policy))
    async for client in serving(service):
        await client.logprobs(GOOD, sequence([5, 6], 1))
    sample = service.metrics.registry.get_sample_value
    assert sample("plaudit_reference_sequences_total") == 2
    assert sample("plaudit_reference_tokens_total") == 6
    assert sample("plaudit_reference_computed_tokens_total") == 6
    assert sample("plaudit_reference_queue_wait_seconds_count") == 2
    assert sample("plaudit_reference_waiting_items") == sample("plaudit_reference_waiting_tokens") == 0
