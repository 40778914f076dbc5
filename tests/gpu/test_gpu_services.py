"""The three services on a GPU: the processor's numbers, and requests that repeat bit for bit.

Products of float32 numbers are float32's here, as PyTorch has it: TF32, which has a thousandth of the
precision, is off unless somebody turns it on.
"""

import asyncio
import contextlib

import numpy as np
import pytest
import torch
from policy_server import NewWeights, policy_server, prompt, tokens
from tiny_reward_models import ARCHITECTURES, save_reward_model

from lm.loading import save_model
from plaudit.clients import PolicyClient, ReferenceClient, RewardClient
from services.policy.service import policy_service
from services.reference.service import reference_service
from services.reward.engine import RewardEngine
from services.reward.items import Pair
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions

KINDS = {
    "policy": (policy_service, PolicyClient),
    "reference": (reference_service, ReferenceClient),
    "reward": (reward_service, RewardClient),
}
PROMPTS = [list(range(3, 3 + length)) for length in (1, 2, 3, 5, 8, 13, 21)]
SEEDS = list(range(len(PROMPTS)))
TEXTS = [
    " good",
    " a dull and lifeless story",
    " what a wonderful performance" * 3,
    " no",
    " seeing the film",
]
PAIRS = [("the film is", text) for text in TEXTS]
SAMPLINGS = ({}, {"temperature": 0.7}, {"temperature": 1.3, "top_k": 20, "top_p": 0.9}, {"temperature": 0.0})


@contextlib.contextmanager
def client(kind, folder, device="cuda", dtype="float32"):
    """A client of a service of its own."""
    service, connect = KINDS[kind]
    options = ModelOptions(str(folder), device, dtype, 1)
    with serve_in_background(lambda: service(options)) as server, connect(server.address, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def policy(tiny_policy):
    with client("policy", tiny_policy) as connected:
        yield connected


@pytest.fixture(scope="module")
def reward(tiny_reward):
    with client("reward", tiny_reward) as connected:
        yield connected


def test_float32_is_float32():
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32


# --- reward ---


def test_a_score_is_the_processors_alone_and_in_a_batch(reward, tiny_reward):
    with client("reward", tiny_reward, "cpu") as on_cpu:
        expected = on_cpu.score(PAIRS).rewards
    together = reward.score(PAIRS).rewards
    alone = [reward.score([each]).rewards[0] for each in PAIRS]
    np.testing.assert_allclose(together, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-5)


def test_a_deterministic_call_repeats_its_bits(reward):
    first, second = (reward.score(PAIRS, deterministic=True).rewards for _ in range(2))
    assert first.tolist() == second.tolist()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_scores_as_on_the_processor(name, tmp_path):
    save_reward_model(name, tmp_path)
    scores = []
    for device in ("cpu", "cuda"):
        engine = RewardEngine(str(tmp_path), device, "float32", 1)
        scores.append(engine.score([engine.encode(Pair("the film", text), "item") for text in TEXTS]))
    torch.testing.assert_close(torch.tensor(scores[1]), torch.tensor(scores[0]), rtol=0, atol=1e-4)


# --- policy and reference ---


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_in_float64_the_tokens_are_the_processors(tiny_policy, sampling):
    """Ragged prompts, rows that end early, several samples of a prompt: the seed decides, not the device."""
    asked = {"seeds": SEEDS, "samples_per_prompt": 2, "max_new_tokens": 40, **sampling}
    answers = []
    for device in ("cpu", "cuda"):
        with client("policy", tiny_policy, device, "float64") as connected:
            answers.append(connected.generate(PROMPTS, **asked).sequences)
    assert [each.token_ids for each in answers[0]] == [each.token_ids for each in answers[1]]
    for on_cpu, on_gpu in zip(*answers, strict=True):
        np.testing.assert_allclose(on_gpu.logprobs, on_cpu.logprobs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_generators_logprobs_are_the_references_on_either_device(policy, tiny_policy, temperature):
    """Summed up along another way, in a cache: equal to 1e-5 all the same."""
    answer = policy.generate(PROMPTS, seeds=SEEDS, max_new_tokens=60, temperature=temperature)
    sequences = [PROMPTS[each.prompt_index] + list(each.token_ids) for each in answer.sequences]
    starts = [len(PROMPTS[each.prompt_index]) for each in answer.sequences]
    generators = np.concatenate([each.logprobs for each in answer.sequences])
    assert len(generators) > 100
    for device in ("cuda", "cpu"):
        with client("reference", tiny_policy, device) as reference:
            values = reference.compute_logprobs(sequences, starts, temperature).values
        np.testing.assert_allclose(generators, np.concatenate(values), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sampling", [{}, {"top_p": 0.9}])
async def test_a_deterministic_request_is_the_same_bytes_alone_and_under_load(tiny_policy, dtype, sampling):
    asked = {"samples": 3, "deterministic": True, "max_new_tokens": 30, **sampling}
    async with policy_server(tiny_policy, dtype, "cuda") as caller:
        alone = await caller.generate(prompt(7, 8, 9, seed=4), prompt(5), **asked)
        load = [caller.generating(prompt(*range(3, 9), seed=seed), max_new_tokens=20) for seed in range(6)]
        under_load = await caller.generate(prompt(7, 8, 9, seed=4), prompt(5), **asked)
        await asyncio.gather(*load)
    assert under_load.SerializeToString() == alone.SerializeToString()


async def test_after_a_push_answers_equal_a_fresh_servers(tiny_policy, tmp_path):
    new = NewWeights(tiny_policy)
    save_model(new.loaded.model, new.loaded.tokenizer, tmp_path)
    good = prompt(7, 8, 9, seed=4)
    async with policy_server(tiny_policy, device="cuda") as caller:
        before = await caller.generate(good, deterministic=True, max_new_tokens=20)
        model = await caller.push(new)
        after = await caller.generate(good, deterministic=True, max_new_tokens=20)
    async with policy_server(tmp_path, device="cuda") as fresh:
        expected = await fresh.generate(good, deterministic=True, max_new_tokens=20)
    assert (model.step, model.weights_sha256) == (1, expected.model.weights_sha256)
    assert after.sequences[0].logprobs == expected.sequences[0].logprobs
    assert tokens(after) == tokens(expected) != tokens(before)


async def test_a_push_in_the_middle_of_responses_takes_effect(tiny_policy):
    new = NewWeights(tiny_policy)
    async with policy_server(tiny_policy, device="cuda") as caller:
        push_id = (await caller.begin(new.manifest())).push_id
        await caller.send(push_id, new.data)
        asked = [prompt(5, seed=seed) for seed in range(8)]
        running = caller.generating(*asked, samples=8, max_new_tokens=127)
        while caller.metric("plaudit_policy_decode_step_seconds_count") < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await caller.commit(push_id)
        response = await running
    assert response.model.step == 1
    assert any(len(sequence.version_spans) == 2 for sequence in response.sequences)


# --- what a GPU serves by itself: bfloat16 ---


def test_bfloat16_is_chosen_and_its_numbers_are_near(tiny_policy, tiny_reward, reward):
    with client("policy", tiny_policy, "auto", "auto") as policy:
        answer = policy.generate(PROMPTS, seeds=SEEDS, max_new_tokens=40)
        assert policy.get_policy().dtype == "bfloat16"
    sequences = [PROMPTS[each.prompt_index] + list(each.token_ids) for each in answer.sequences]
    starts = [len(PROMPTS[each.prompt_index]) for each in answer.sequences]
    with client("reference", tiny_policy, "auto", "auto") as reference:
        values = reference.compute_logprobs(sequences, starts, 1.0).values
    generators = np.concatenate([each.logprobs for each in answer.sequences])
    assert np.isfinite(generators).all()
    assert np.abs(generators - np.concatenate(values)).mean() < 0.02
    with client("reward", tiny_reward, "auto", "auto") as half:
        np.testing.assert_allclose(half.score(PAIRS).rewards, reward.score(PAIRS).rewards, rtol=0, atol=0.05)
