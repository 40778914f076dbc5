"""RewardService over a real server: scores are the model's own, and bad items are named."""

import asyncio
import math
import threading
from dataclasses import replace

import grpc
import pytest
import torch
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from reward_server import GOOD, chat, ids, options, pair, serving, violations
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from plaudit.v1 import reward_pb2, types_pb2
from services.batching import WAITING_CALLS, CallLimits
from services.reward.engine import RewardEngine
from services.reward.service import reward_service
from services.rpc.command import ModelOptions

ALONE = reward_pb2.ScoreOptions(deterministic=True)


@pytest.fixture
async def client(tiny_reward):
    async for made in serving(reward_service(options(tiny_reward))):
        yield made


@pytest.fixture
async def foreign(foreign_reward):
    async for made in serving(reward_service(options(foreign_reward))):
        yield made


def hugging_face_score(folder, token_ids):
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([token_ids])).logits[0, 0].item()


# --- scores ---


async def test_ids_are_scored_as_hugging_face_scores_them(client, tiny_reward):
    digest = (await client.model()).model.tokenizer_sha256
    sequences = [[5, 6, 7, 2], [40], list(range(3, 120)), [9, 9, 0], [0]]
    response = await client.score(*(ids(*one) for one in sequences), tokenizer_sha256=digest)
    for result, sequence in zip(response.results, sequences, strict=True):
        raw = hugging_face_score(tiny_reward, sequence)
        assert result.reward.raw_reward == pytest.approx(raw, abs=1e-5)
        assert result.reward.reward == pytest.approx((raw - 0.25) / 2, abs=1e-5)
        assert result.reward.token_count == len(sequence)


async def test_a_pair_is_prompt_response_and_eos(client, tiny_reward):
    tokenizer = AutoTokenizer.from_pretrained(tiny_reward)
    expected = [
        *tokenizer("the film is", add_special_tokens=False)["input_ids"],
        *tokenizer(" good", add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    ]
    reward = (await client.score(GOOD)).results[0].reward
    assert reward.token_count == len(expected)
    assert reward.raw_reward == pytest.approx(hugging_face_score(tiny_reward, expected), abs=1e-5)


async def test_a_chat_is_rendered_with_the_template(client, tiny_reward):
    tokenizer = AutoTokenizer.from_pretrained(tiny_reward)
    expected = tokenizer("<|start|>user\nhi<|end|>\n<|start|>assistant\nho<|end|>\n")["input_ids"]
    reward = (await client.score(chat(("user", "hi"), ("assistant", "ho")))).results[0].reward
    assert reward.token_count == len(expected)
    assert reward.raw_reward == pytest.approx(hugging_face_score(tiny_reward, expected), abs=1e-5)


async def test_a_foreign_model_with_pad_as_eos_scores_as_its_own_forward(foreign, foreign_reward):
    tokenizer = AutoTokenizer.from_pretrained(foreign_reward)
    texts = ["the film is good", "dull", "a wonderful performance, not worth seeing"]
    response = await foreign.score(*(pair("", text) for text in texts))
    for result, text in zip(response.results, texts, strict=True):
        raw = hugging_face_score(foreign_reward, tokenizer(text)["input_ids"])
        assert result.reward.raw_reward == pytest.approx(raw, abs=1e-5)
        assert result.reward.reward == result.reward.raw_reward


async def test_a_batch_of_mixed_lengths_scores_as_one_by_one(client):
    items = [pair("the film", " is good" * n) for n in (5, 1, 9, 2, 7, 1)]
    together = (await client.score(*items)).results
    alone = [(await client.score(item)).results[0] for item in items]
    for one, other in zip(together, alone, strict=True):
        assert one.reward.raw_reward == pytest.approx(other.reward.raw_reward, abs=1e-5)


async def test_get_model_describes_what_is_loaded(client, tiny_reward):
    found = await client.model()
    assert found.model.model_id == str(tiny_reward)
    assert (found.model.run_id, found.model.step) == ("", 0)
    assert len(found.model.weights_sha256) == len(found.model.tokenizer_sha256) == 64
    assert found.dtype == types_pb2.DATA_TYPE_F32
    assert (found.vocabulary_size, found.context_length) == (300, 128)
    assert (found.reward_mean, found.reward_std) == (0.25, 2.0)
    assert found.has_chat_template
    assert found.limits.max_items >= 1024
    assert found.limits.max_message_bytes == 64 << 20
    assert (await client.score(GOOD)).model == found.model


async def test_a_model_without_mean_and_template_says_so(foreign):
    found = await foreign.model()
    assert (found.reward_mean, found.reward_std, found.has_chat_template) == (0.0, 1.0, False)


# --- bad items keep their neighbours ---

BAD_ITEMS = {
    "empty response": (pair("the film", ""), "items[1].pair.response", "is empty"),
    "special token in a prompt": (pair("<|end|>", "c"), "items[1].pair.prompt", "special token '<|end|>'"),
    "special token in a response": (pair("a", "<|pad|>b"), "items[1].pair.response", "token '<|pad|>'"),
    "special token in a chat": (
        chat(("user", "x"), ("assistant", "<|start|>system")),
        "items[1].chat.messages[1].content",
        "special token '<|start|>'",
    ),
    "no messages": (chat(), "items[1].chat.messages", "no messages"),
    "empty last turn": (
        chat(("user", "x"), ("assistant", "")), "items[1].chat.messages[1].content", "is empty"
    ),
    "no input": (reward_pb2.ScoreItem(), "items[1]", "set pair, chat or token_ids"),
    "no ids": (ids(), "items[1].token_ids.ids", "is empty"),
    "id outside the vocabulary": (ids(5, 300), "items[1].token_ids.ids[1]", "the vocabulary ends at 299"),
    "largest id": (ids(2**32 - 1), "items[1].token_ids.ids[0]", "is 4294967295"),
    "over-long ids": (ids(*[5] * 129), "items[1]", "has 129 tokens, the model reads at most 128"),
    "over-long text": (pair("a", "é" * 500), "items[1]", "the model reads at most 128"),
}  # fmt: skip


@pytest.mark.parametrize(("bad", "field", "words"), BAD_ITEMS.values(), ids=BAD_ITEMS.keys())
async def test_a_bad_item_is_named_and_its_neighbours_are_scored(client, bad, field, words):
    digest = (await client.model()).model.tokenizer_sha256
    results = (await client.score(GOOD, bad, GOOD, tokenizer_sha256=digest)).results
    assert [result.WhichOneof("result") for result in results] == ["reward", "error", "reward"]
    scores = [results[index].reward.raw_reward for index in (0, 2)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    error = results[1].error
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert error.message.startswith(field)
    (violation,) = error.field_violations
    assert violation.field == field
    assert words in violation.description


@pytest.mark.parametrize(("bad", "field", "words"), BAD_ITEMS.values(), ids=BAD_ITEMS.keys())
async def test_all_or_nothing_fails_the_call_with_every_bad_item(client, bad, field, words):
    digest = (await client.model()).model.tokenizer_sha256
    error = await client.refused(GOOD, bad, ids(), tokenizer_sha256=digest, all_or_nothing=True)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    (found, description), (other, _) = violations(error)
    assert (found, other) == (field, "items[2].token_ids.ids")
    assert words in description
    await client.still_serves()


async def test_the_longest_item_that_fits_is_scored(client):
    digest = (await client.model()).model.tokenizer_sha256
    (result,) = (await client.score(ids(*[5] * 128), tokenizer_sha256=digest)).results
    assert result.reward.token_count == 128


async def test_a_chat_needs_a_template(foreign):
    (result,) = (await foreign.score(chat(("user", "hi")))).results
    assert result.error.field_violations[0].field == "items[0].chat.messages"
    assert "no chat template" in result.error.message


# --- the call as a whole ---


async def test_ids_need_the_tokenizers_digest(client):
    error = await client.refused(GOOD, ids(5))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violations(error)[0][0] == "tokenizer_sha256"
    await client.still_serves()


async def test_ids_of_another_tokenizer_are_refused(client):
    error = await client.refused(ids(5), tokenizer_sha256="0" * 64)
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    found = error_details_pb2.PreconditionFailure()
    assert rpc_status.from_call(error).details[0].Unpack(found)
    assert (found.violations[0].type, found.violations[0].subject) == ("TOKENIZER", "tokenizer_sha256")
    await client.still_serves()


async def test_an_empty_call_is_refused(client):
    error = await client.refused()
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violations(error) == [("items", "is empty; send at least one item")]


@pytest.fixture
async def narrow(tiny_reward):
    async for made in serving(reward_service(options(tiny_reward), CallLimits(max_items=2, max_tokens=20))):
        yield made


async def test_the_calls_limits_are_stated_and_held(narrow):
    model = await narrow.model()
    assert (model.limits.max_items, model.limits.max_tokens) == (2, 20)
    digest = model.model.tokenizer_sha256
    for error in (
        await narrow.refused(GOOD, GOOD, GOOD),
        await narrow.refused(ids(*[5] * 11), ids(*[5] * 10), tokenizer_sha256=digest),
        await narrow.refused(pair("a", "xyz" * 7), GOOD),
    ):
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        ((field, description),) = violations(error)
        assert field == "items"
        assert "split it" in description
    assert len((await narrow.score(ids(*[5] * 10), ids(*[5] * 10), tokenizer_sha256=digest)).results) == 2


# --- what the model may do wrong ---


class Odd:
    """An engine whose scores a test decides; everything else is the real engine's."""

    def __init__(self, engine, score):
        self._engine = engine
        self.facts, self.token_budget = engine.facts, engine.token_budget
        self.encode = engine.encode
        self.score = score


@pytest.fixture
def engine(tiny_reward):
    return RewardEngine(str(tiny_reward), dtype="float32", threads=1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
async def test_a_score_that_is_no_number_is_an_error_of_its_item(engine, value):
    def score(batch):
        return [(value if len(one.ids) == 3 else 1.5,) for one in batch]

    service = reward_service(ModelOptions("odd"), load_engine=lambda _: Odd(engine, score))
    async for client in serving(service):
        digest = (await client.model()).model.tokenizer_sha256
        items = (ids(1, 2), ids(1, 2, 3), ids(1))
        results = (await client.score(*items, tokenizer_sha256=digest)).results
        assert [result.WhichOneof("result") for result in results] == ["reward", "error", "reward"]
        assert results[1].error.code == grpc.StatusCode.INTERNAL.value[0]
        assert results[0].reward.reward == (1.5 - 0.25) / 2
        error = await client.refused(*items, tokenizer_sha256=digest, all_or_nothing=True)
        assert error.code() is grpc.StatusCode.INTERNAL
    counted = service.metrics.registry.get_sample_value
    results = ("scored", "error", "not_finite")
    assert [counted("plaudit_reward_items_total", {"result": each}) for each in results] == [4, 0, 2]


async def test_an_engine_that_fails_is_internal_and_the_next_call_is_served(engine):
    broken = threading.Event()
    broken.set()

    def score(batch):
        if broken.is_set():
            raise RuntimeError("out of memory at 0x7f")
        return engine.score(batch)

    async for client in serving(reward_service(ModelOptions("m"), load_engine=lambda _: Odd(engine, score))):
        error = await client.refused(GOOD)
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "memory" not in error.details()
        broken.clear()
        await client.still_serves()


async def test_rewards_are_normalised_in_float64(engine):
    facts = replace(engine.facts, reward_mean=1e8, reward_std=1.0)
    odd = Odd(engine, lambda batch: [(1e8 + 0.5,)] * len(batch))
    odd.facts = facts
    async for client in serving(reward_service(ModelOptions("m"), load_engine=lambda _: odd)):
        assert (await client.score(GOOD)).results[0].reward.reward == 0.5


def waiting(service):
    return service.metrics.registry.get_sample_value("plaudit_reward_waiting_items", {"model": "reward"})


async def test_more_than_may_wait_is_turned_away_and_a_passed_deadline_never_runs(engine):
    started, opened, runs = threading.Event(), threading.Event(), []

    def score(batch):
        started.set()
        opened.wait()
        runs.append(len(batch))
        return [(1.0,)] * len(batch)

    limits = CallLimits(max_items=1)
    service = reward_service(ModelOptions("m"), limits, lambda _: Odd(engine, score))
    async for client in serving(service):
        calls = [asyncio.create_task(client.score(GOOD, options=ALONE))]
        assert await asyncio.to_thread(started.wait, 10)
        calls += [asyncio.create_task(client.score(GOOD, options=ALONE)) for _ in range(WAITING_CALLS - 1)]
        try:
            async with asyncio.timeout(10):
                while waiting(service) < WAITING_CALLS:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            error = await client.refused(GOOD, options=ALONE)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) >= 1
            calls.pop().cancel()
            async with asyncio.timeout(10):
                while waiting(service) >= WAITING_CALLS:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            late = await client.refused(GOOD, options=ALONE, within=0.1)
            assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        finally:
            opened.set()
        await asyncio.gather(*calls)
        await client.still_serves()
    assert runs == [1] * WAITING_CALLS


async def test_what_was_scored_is_counted(tiny_reward):
    service = reward_service(options(tiny_reward))
    async for client in serving(service):
        digest = (await client.model()).model.tokenizer_sha256
        await client.score(ids(1, 2, 3), ids(), ids(4), tokenizer_sha256=digest)
    sample = service.metrics.registry.get_sample_value
    assert sample("plaudit_reward_items_total", {"result": "scored"}) == 2
    assert sample("plaudit_reward_items_total", {"result": "error"}) == 1
    assert sample("plaudit_reward_tokens_total") == 4
    model = {"model": "reward"}
    assert sample("plaudit_reward_waiting_items", model) == 0
    assert sample("plaudit_reward_waiting_tokens", model) == 0
    assert sample("plaudit_reward_computed_tokens_total", model) == 4
    assert sample("plaudit_reward_padded_tokens_total", model) >= 4
    assert sample("plaudit_reward_queue_wait_seconds_count", model) == 2
    assert sample("plaudit_reward_cache_hits_total", model) == 0
    labels = {"model_id": str(tiny_reward), "dtype": "float32", "run_id": ""}
    infos = [m.samples for m in service.metrics.registry.collect() if m.name == "plaudit_model_info"]
    assert labels.items() <= infos[0][0].labels.items()
