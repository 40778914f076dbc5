"""Reward and reference over real servers: the models' own numbers, and none that is made up."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from gateway_server import held_reward, wait_until
from policy_fleet import CPU, model_options, tiny_prompts

from lm.loading import load_causal_lm, load_reward_model
from lm.logprobs import response_logprobs, unflatten
from lm.rewards import sequence_scores
from lm.tokenizer import decode, encode_pair, tokenizer_sha256
from plaudit.clients import ReferenceClient, RewardClient
from services.reference.service import reference_service
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from trainer.ppo import patience
from trainer.ppo.patience import Endpoint, Patience
from trainer.ppo.remote import RemoteReference, RemoteReward
from trainer.ppo.rollout import Response, Rollout


@pytest.fixture
def prompts(tiny_policy):
    return tiny_prompts(tiny_policy)


@pytest.fixture
def rollout(tiny_policy, prompts):
    tokenizer = load_causal_lm(str(tiny_policy), CPU).tokenizer
    responses = []
    for index, _ in enumerate(prompts):
        ids = (5 + index, 9, 11)[: 1 + index % 3] + ((tokenizer.eos_token_id,) if index % 2 else ())
        text = decode(tokenizer, ids)
        responses.append(Response(ids, text, (-1.0,) * len(ids), bool(index % 2), ((0, 0, len(ids)),), index))
    return Rollout.of(tuple(prompts), tuple(responses))


@pytest.fixture
def reward_at():
    with contextlib.ExitStack() as stack:

        def start(folder, seconds=5.0, digest=None, tokenizer_folder=None, limits=None):
            server = stack.enter_context(
                serve_in_background(lambda: reward_service(model_options(folder), limits))
            )
            client = stack.enter_context(RewardClient(server.address))
            tokenizer = load_causal_lm(str(tokenizer_folder), CPU).tokenizer
            endpoint = Endpoint("reward", server.address, "services.reward")
            return RemoteReward(
                client, client.get_model(), endpoint, Patience(seconds), tokenizer_sha256(tokenizer)
            )

        yield start


def test_rewards_are_asked_in_ids_where_the_tokenizer_is_the_policys(
    reward_at, tiny_reward, tiny_policy, rollout
):
    reward = reward_at(tiny_reward, tokenizer_folder=tiny_policy)
    assert reward.form == "ids"
    scores = reward.score(rollout)
    loaded = load_reward_model(str(tiny_reward), CPU)
    raw = sequence_scores(loaded.model, rollout.sequences).tolist()
    assert scores.failures == {}
    assert [scores.values[row] for row in range(7)] == pytest.approx(
        [(x - 0.25) / 2.0 for x in raw], abs=1e-5
    )


def test_rewards_of_a_foreign_model_are_asked_in_text(reward_at, foreign_reward, tiny_policy, rollout):
    reward = reward_at(foreign_reward, tokenizer_folder=tiny_policy)
    assert reward.form == "text"
    scores = reward.score(rollout)
    loaded = load_reward_model(str(foreign_reward), CPU)
    for row, (prompt, response) in enumerate(zip(rollout.prompts, rollout.responses, strict=True)):
        ids = encode_pair(
            loaded.tokenizer, prompt.text, response.text, pair_format=loaded.pair_format, append_eos=False
        )
        assert scores.values[row] == pytest.approx(sequence_scores(loaded.model, [ids]).item(), abs=1e-5)


def test_a_reward_that_cannot_be_had_is_a_failure_and_its_neighbours_have_theirs(
    reward_at, foreign_reward, tiny_policy, rollout
):
    empty = Response((rollout.responses[0].token_ids), "", (-1.0,), True, ((0, 0, 1),), 0)
    rollout = Rollout.of(rollout.prompts, (empty, *rollout.responses[1:]))
    scores = reward_at(foreign_reward, tokenizer_folder=tiny_policy).score(rollout)
    assert sorted(scores.values) == [1, 2, 3, 4, 5, 6]
    assert "INVALID_ARGUMENT" in scores.failures[0]
    assert "services.reward" in scores.failures[0]


def test_a_service_that_hangs_is_waited_for_and_asked_again(tiny_reward, monkeypatch, caplog):
    """Its call takes longer than patience by itself."""
    monkeypatch.setattr(patience, "SLOW_S", 0.2)
    patient = Patience(1.0)
    with (
        held_reward(tiny_reward) as held,
        RewardClient(held.address, timeout=3.0) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        endpoint = Endpoint("reward", held.address, "services.reward")
        ask = partial(client.score, [("the film", " is good")], deterministic=True)
        answer = pool.submit(patient.call, endpoint, ask)
        wait_until(lambda: patient.waits_for("reward"))
        assert caplog.messages == [f"{endpoint} has not answered for 0 s; waiting until the call ends"]
        wait_until(lambda: "trying for another 1 s" in caplog.text)
        held.engine.go_on.set()
        assert len(answer.result(20).results) == 1
    assert not patient.waits_for("reward")


@pytest.fixture
def reference_at(tiny_policy):
    with contextlib.ExitStack() as stack:

        def start(temperature, seconds=5.0):
            server = stack.enter_context(
                serve_in_background(lambda: reference_service(model_options(tiny_policy)))
            )
            client = stack.enter_context(ReferenceClient(server.address))
            endpoint = Endpoint("reference", server.address, "services.reference")
            return RemoteReference(client, client.get_reference(), endpoint, Patience(seconds), temperature)

        yield start


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_reference_logprobs_are_the_models_at_the_sampling_temperature(
    temperature, reference_at, tiny_policy, rollout
):
    ref_logprobs = reference_at(temperature).logprobs(rollout)
    model = load_causal_lm(str(tiny_policy), CPU).model
    flat = response_logprobs(model, rollout.sequences, rollout.starts, temperature)
    expected = unflatten(flat, [len(response.token_ids) for response in rollout.responses])
    assert torch.allclose(ref_logprobs, expected, atol=1e-5)
    assert torch.all(ref_logprobs[~rollout.loss_mask_BT] == 0)
