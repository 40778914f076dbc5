"""PolicyService over a real server."""

import asyncio

import grpc
import pytest
import torch
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from policy_server import F32, detail, policy_server, precondition, prompt, refused, tokens, violations

from lm.loading import load_causal_lm
from lm.logprobs import response_logprobs
from lm.tokenizer import decode, tokenizer_sha256
from plaudit.v1 import policy_pb2, types_pb2
from services.batching import WAITING_CALLS, CallLimits

EOS, LENGTH = policy_pb2.FINISH_REASON_EOS, policy_pb2.FINISH_REASON_LENGTH
GOOD = prompt(7, 8, 9, seed=4)


@pytest.fixture
async def caller(tiny_policy):
    async with policy_server(tiny_policy) as caller:
        yield caller


@pytest.fixture(scope="module")
def loaded(tiny_policy):
    return load_causal_lm(str(tiny_policy), F32)


# --- answers ---


async def test_logprobs_are_those_the_learner_computes(caller, loaded):
    prompts = [prompt(*range(3, 3 + length), seed=length) for length in (1, 2, 3, 5, 8, 13, 21)]
    response = await caller.generate(*prompts, samples=2, max_new_tokens=40, temperature=0.7)
    ids = [
        [*prompts[sequence.prompt_index].token_ids.ids, *sequence.token_ids]
        for sequence in response.sequences
    ]
    starts = [len(prompts[sequence.prompt_index].token_ids.ids) for sequence in response.sequences]
    for temperature, name in ((0.7, "logprobs"), (1.0, "logprobs_temperature_1")):
        with torch.no_grad():
            learner_N = response_logprobs(loaded.model, ids, starts, temperature)
        found_N = torch.tensor(
            [value for sequence in response.sequences for value in getattr(sequence, name)]
        )
        assert len(found_N) > 100
        torch.testing.assert_close(found_N, learner_N, rtol=0, atol=1e-5)


async def test_every_response_says_which_model_made_it(caller, loaded):
    response = await caller.generate(GOOD, prompt(5, seed=6), samples=2)
    described = await caller.describe()
    assert response.model == described.model
    assert (response.model.run_id, response.model.step) == ("", 0)
    assert len(response.model.weights_sha256) == 64
    assert response.model.tokenizer_sha256 == tokenizer_sha256(loaded.tokenizer)
    order = [(s.prompt_index, s.sample_index, s.seed) for s in response.sequences]
    assert order == [(0, 0, 4), (0, 1, 4), (1, 0, 6), (1, 1, 6)]
    for s in response.sequences:
        assert len(s.token_ids) == len(s.logprobs) == len(s.logprobs_temperature_1) <= 6
        assert [(span.step, span.start, span.end) for span in s.version_spans] == [(0, 0, len(s.token_ids))]
        assert s.text == decode(loaded.tokenizer, s.token_ids)
        assert s.finish_reason == (EOS if s.token_ids[-1] == 2 else LENGTH)


async def test_text_and_chat_come_back_as_ids(caller, loaded):
    chat = types_pb2.Chat(messages=[types_pb2.ChatMessage(role="user", content="the film")])
    response = await caller.generate(policy_pb2.Prompt(text="the film"), policy_pb2.Prompt(chat=chat))
    text_ids, chat_ids = (list(ids.ids) for ids in response.prompt_token_ids)
    assert decode(loaded.tokenizer, text_ids) == "the film"
    assert decode(loaded.tokenizer, chat_ids, skip_special_tokens=False).endswith("<|start|>assistant\n")
    again = await caller.generate(*[prompt(*ids, seed=s.seed) for ids, s in zip(
        (text_ids, chat_ids), response.sequences, strict=True)])  # fmt: skip
    assert tokens(again) == tokens(response)


async def test_a_drawn_seed_comes_back_and_repeats_the_response(caller):
    first = await caller.generate(policy_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=[7, 8])), samples=2)
    seed = first.sequences[0].seed
    assert {s.seed for s in first.sequences} == {seed}
    assert tokens(await caller.generate(prompt(7, 8, seed=seed), samples=2)) == tokens(first)
    assert tokens(await caller.generate(prompt(7, 8, seed=seed ^ 1), samples=2)) != tokens(first)


async def test_greedy_is_hugging_faces_greedy(caller, loaded):
    response = await caller.generate(GOOD, temperature=0, max_new_tokens=20)
    expected = loaded.model.generate(
        torch.tensor([[7, 8, 9]]), max_new_tokens=20, do_sample=False, pad_token_id=0
    )[0, 3:].tolist()
    assert tokens(response) == [expected]
    assert set(response.sequences[0].logprobs) == {0.0}
    assert max(response.sequences[0].logprobs_temperature_1) < 0


async def test_a_deterministic_request_is_the_same_bytes_alone_and_under_load(caller):
    asked = {"samples": 3, "deterministic": True, "max_new_tokens": 30}
    alone = await caller.generate(GOOD, prompt(5), **asked)
    load = [caller.generating(prompt(*range(3, 9), seed=seed), max_new_tokens=20) for seed in range(6)]
    under_load = await caller.generate(GOOD, prompt(5), **asked)
    await asyncio.gather(*load)
    assert under_load.SerializeToString() == alone.SerializeToString()


async def test_top_k_and_stops(caller):
    whole = (await caller.generate(GOOD, max_new_tokens=30)).sequences[0]
    cut = (await caller.generate(GOOD, max_new_tokens=30, top_k=2)).sequences[0]
    assert all(a > b for a, b in zip(cut.logprobs, cut.logprobs_temperature_1, strict=True))
    stop = whole.token_ids[3]
    stopped = (await caller.generate(GOOD, max_new_tokens=30, stop_token_ids=[stop])).sequences[0]
    assert stopped.finish_reason == policy_pb2.FINISH_REASON_STOP_TOKEN
    assert list(stopped.token_ids) == list(whole.token_ids[: list(whole.token_ids).index(stop) + 1])


async def test_describes_itself(caller):
    described = await caller.describe()
    assert (described.engine, described.dtype) == ("torch", types_pb2.DATA_TYPE_F32)
    assert (described.vocabulary_size, described.context_length) == (300, 128)
    assert list(described.eos_token_ids) == [2]
    assert described.has_chat_template


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
async def test_other_types(tiny_policy, dtype):
    async with policy_server(tiny_policy, dtype) as caller:
        response = await caller.generate(GOOD)
        assert 1 <= len(response.sequences[0].token_ids) <= 6


# --- refusals: the field and the fix, and the server serves on ---


def sampled(**fields):
    return {"prompts": (GOOD,), **fields}


@pytest.mark.parametrize(
    ("asked", "field", "fix"),
    [
        ({"prompts": ()}, "prompts", "send at least one"),
        ({"prompts": (GOOD, prompt())}, "prompts[1].token_ids.ids", "at least one token"),
        ({"prompts": (policy_pb2.Prompt(),)}, "prompts[0]", "set token_ids, text or chat"),
        ({"prompts": (GOOD, prompt(5, 300))}, "prompts[1].token_ids.ids[1]", "the vocabulary ends at 299"),
        ({"prompts": (prompt(*[5] * 123),)}, "prompts[0]", "shorten it, or lower sampling.max_new_tokens"),
        ({"prompts": (policy_pb2.Prompt(text="a<|pad|>"),)}, "prompts[0].text", "remove it"),
        (sampled(temperature=-1), "sampling.temperature", "use 0 for the likeliest token"),
        (sampled(temperature=float("nan")), "sampling.temperature", "use 0"),
        (sampled(top_p=0), "sampling.top_p", "above 0 and at most 1"),
        (sampled(top_p=1.5), "sampling.top_p", "above 0 and at most 1"),
        (sampled(max_new_tokens=0), "sampling.max_new_tokens", "use 1 or more"),
        (sampled(samples=0), "samples_per_prompt", "use 1 or more"),
        (sampled(samples=5000), "prompts", "split it"),
        (sampled(stop_token_ids=[5, 999]), "sampling.stop_token_ids[1]", "ends at 299"),
    ],
)
async def test_bad_values(caller, asked, field, fix):
    found = violations(await refused(caller.generating(*asked.pop("prompts"), **asked)))
    assert fix in found[field]
    assert len((await caller.generate(GOOD)).sequences) == 1


async def test_a_step_that_is_not_loaded(caller):
    error = await refused(caller.generating(GOOD, exactly=7))
    assert precondition(error) == ("STEP", "step_exactly")
    assert "step 0 is loaded, not exactly step 7" in error.details()
    assert len((await caller.generate(GOOD, exactly=0)).sequences) == 1


async def test_a_full_queue_says_when_to_come_back(tiny_policy):
    async with policy_server(tiny_policy, limits=CallLimits(max_items=1)) as caller:
        calls = [caller.generating(GOOD, max_new_tokens=100) for _ in range(12)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        refusals = [error for error in ended if isinstance(error, grpc.RpcError)]
        assert 1 <= len(refusals) <= 12 - WAITING_CALLS
        for error in refusals:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0


# --- going away ---


async def until(condition):
    while not condition():  # noqa: ASYNC110 (what a server does inside can only be looked at)
        await asyncio.sleep(0.001)


async def test_a_cancelled_call_stops_the_work(caller):
    def dropped():
        return caller.metric("plaudit_policy_sequences_total", finish_reason="dropped")

    call = caller.generating(*[prompt(5, seed=s) for s in range(40)], samples=16, max_new_tokens=127)
    await until(lambda: caller.metric("plaudit_policy_decode_step_seconds_count") > 2)
    call.cancel()
    await until(lambda: dropped() > 500)
    assert caller.metric("plaudit_policy_waiting_items") == 0
    assert len((await caller.generate(GOOD)).sequences) == 1


async def test_a_deadline_stops_the_work(caller):
    error = await refused(caller.generating(prompt(5), samples=640, max_new_tokens=127, within=0.3))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: caller.metric("plaudit_policy_sequences_total", finish_reason="dropped") > 0)
    await until(lambda: caller.metric("plaudit_policy_waiting_items") == 0)
    assert len((await caller.generate(GOOD)).sequences) == 1


async def test_metrics_of_a_call(caller):
    response = await caller.generate(GOOD, prompt(5), samples=2)
    count = sum(len(s.token_ids) for s in response.sequences)
    assert caller.metric("plaudit_policy_generated_tokens_total") == count
    assert caller.metric("plaudit_policy_batch_rows_sum") == count
    assert caller.metric("plaudit_policy_prompt_tokens_total") == 3 + 1, "both samples read it once"
    assert caller.metric("plaudit_policy_padded_prompt_tokens_total") == 3 + 3
    assert caller.metric("plaudit_policy_queue_wait_seconds_count") == 1
    assert caller.metric("plaudit_model_step") == 0


@pytest.mark.parametrize("name", ["plaudit.v1.PolicyService", "plaudit.v1.WeightsService"])
async def test_health_knows_both_services(caller, name):
    request = health_pb2.HealthCheckRequest(service=name)
    answer = await health_pb2_grpc.HealthStub(caller.channel).Check(request, timeout=30)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
