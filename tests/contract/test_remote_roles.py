"""Policy, reward and reference over real servers: the same bits, the same weights, no made-up numbers."""

import contextlib
from dataclasses import dataclass

import pytest
import torch

from lm.digests import WeightsDigest, effective_tensors
from lm.loading import load_causal_lm, load_reward_model
from lm.logprobs import response_logprobs, unflatten
from lm.placement import choose_placement
from lm.rewards import sequence_scores
from lm.tokenizer import decode, encode_pair, tokenizer_sha256
from plaudit.clients import (
    PolicyClient,
    PushManifest,
    ReferenceClient,
    RewardClient,
    TensorSpec,
    WeightsClient,
)
from services.policy.service import policy_service
from services.reference.service import reference_service
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from services.rpc.server import ServerOptions
from trainer.ppo.config import SamplingSection
from trainer.ppo.patience import Endpoint, Patience
from trainer.ppo.remote import RemoteReference, RemoteReward
from trainer.ppo.remote_policy import RemotePolicy
from trainer.ppo.replica import Replica
from trainer.ppo.roles import RoleUnavailable, StaleWeights
from trainer.ppo.rollout import Prompt, Response, Rollout

CPU = choose_placement("cpu", "float32", 1)
TEXTS = ["the film", "a dull", "what a", "not worth", "the story", "lifeless", "seeing"]
SEEDS = list(range(100, 107))


def options(folder, dtype="float32"):
    return ModelOptions(str(folder), "cpu", dtype, 1)


@dataclass
class PolicyServer:
    """A policy server that can be stopped and started again at the same address."""

    folder: object
    dtype: str = "float32"
    address: str = "127.0.0.1:0"

    def start(self):
        self._stack = contextlib.ExitStack()
        server = self._stack.enter_context(
            serve_in_background(
                lambda: policy_service(options(self.folder, self.dtype)), ServerOptions(self.address)
            )
        )
        self.address = server.address
        return self

    def stop(self):
        self._stack.close()

    def info(self):
        with PolicyClient(self.address) as client:
            return client.get_policy()


@pytest.fixture
def servers(tiny_policy):
    with contextlib.ExitStack() as stack:

        def start(count, dtype="float32"):
            started = [PolicyServer(tiny_policy, dtype).start() for _ in range(count)]
            for server in started:
                stack.callback(server.stop)
            return started

        yield start


@pytest.fixture
def learner(tiny_policy):
    return load_causal_lm(str(tiny_policy), CPU).model


@pytest.fixture
def connect(learner):
    """RemotePolicy over some servers, whose weights are those of `learner` when they are pushed."""
    with contextlib.ExitStack() as stack:

        def make(servers, seconds=10.0, run_id="r", dtype=torch.float32, request_size=2):
            replicas = [
                Replica(
                    Endpoint("policy", server.address, f"services.policy[{index}]"),
                    stack.enter_context(PolicyClient(server.address)),
                    stack.enter_context(WeightsClient(server.address)),
                )
                for index, server in enumerate(servers)
            ]
            sampling = SamplingSection(response_length=6, request_size=request_size)
            return RemotePolicy(
                replicas, sampling, Patience(seconds), run_id, lambda: effective_tensors(learner), dtype
            )

        yield make


@pytest.fixture
def prompts(tiny_policy):
    tokenizer = load_causal_lm(str(tiny_policy), CPU).tokenizer
    return [Prompt(i, tuple(tokenizer(text)["input_ids"]), text) for i, text in enumerate(TEXTS)]


def learn(learner, names=("model.norm.weight", "model.layers.1.mlp.up_proj.weight")):
    """A step of training, as far as the policy can tell: some tensors change."""
    chosen = [(name, tensor) for name, tensor in effective_tensors(learner) if name in names]
    with torch.no_grad():
        for _, tensor in chosen:
            tensor.mul_(1.5)
    return chosen


def digest(model, dtype=torch.float32):
    return WeightsDigest((name, tensor.to(dtype)) for name, tensor in effective_tensors(model)).hexdigest()


def test_a_rollout_is_the_same_bits_over_one_replica_and_over_three(servers, connect, prompts):
    one, *three = servers(4)
    alone, spread = connect([one]), connect(three)
    alone.start(0)
    spread.start(0)
    first, second = alone.generate(prompts, SEEDS, 0), spread.generate(prompts, SEEDS, 0)
    assert first == second
    assert [response.seed for response in first] == SEEDS
    assert all(response.version_spans == ((0, 0, len(response.token_ids)),) for response in first)


def test_a_fresh_server_of_the_same_model_needs_no_push(servers, connect):
    policy = connect(servers(2))
    policy.start(0)
    assert policy.bytes_pushed == 0


def test_a_push_reaches_every_replica_with_only_what_changed(servers, connect, learner, prompts):
    replicas = servers(2)
    policy = connect(replicas)
    policy.start(0)
    before = policy.generate(prompts, SEEDS, 0)
    changed = learn(learner)
    policy.push(changed, 1)
    models = [replica.info().model for replica in replicas]
    assert [(m.step, m.run_id, m.weights_sha256) for m in models] == [(1, "r", digest(learner))] * 2
    assert policy.bytes_pushed == 2 * 4 * sum(tensor.numel() for _, tensor in changed)
    after = policy.generate(prompts, SEEDS, 1)
    assert [response.token_ids for response in after] != [response.token_ids for response in before]
    flat = response_logprobs(
        learner,
        [p.token_ids + r.token_ids for p, r in zip(prompts, after, strict=True)],
        [len(p.token_ids) for p in prompts],
    )
    assert flat.tolist() == pytest.approx([x for response in after for x in response.logprobs], abs=1e-5)


def test_weights_are_pushed_in_the_type_that_is_served(servers, connect, learner):
    replicas = servers(1, "bfloat16")
    policy = connect(replicas, dtype=torch.bfloat16)
    policy.start(0)
    policy.push(learn(learner), 1)
    assert replicas[0].info().model.weights_sha256 == digest(learner, torch.bfloat16)


def test_a_run_takes_over_whatever_was_served_and_may_go_back_to_an_earlier_step(servers, connect, learner):
    replicas = servers(2)
    first = connect(replicas, run_id="first")
    first.start(0)
    kept = {name: tensor.clone() for name, tensor in learn(learner)}
    first.push(kept.items(), 7)
    learn(learner)
    second = connect(replicas, run_id="second")
    second.start(3)
    assert {(r.info().model.run_id, r.info().model.step) for r in replicas} == {("second", 3)}
    assert {r.info().model.weights_sha256 for r in replicas} == {digest(learner)}


def test_two_runs_on_one_replica_are_refused_not_mixed(servers, connect, learner, prompts):
    replicas = servers(1)
    first, second = connect(replicas, run_id="first"), connect(replicas, run_id="second")
    first.start(0)
    first.push(learn(learner), 1)
    second.start(0)
    with pytest.raises(StaleWeights, match=r"services\.policy\[0\].*step 0 is loaded"):
        first.generate(prompts, SEEDS, 1)
    with pytest.raises(StaleWeights, match="another trainer pushes to it"):
        first.push(learn(learner), 2)


def test_a_step_that_was_not_pushed_is_refused_without_asking(servers, connect, prompts):
    policy = connect(servers(1))
    policy.start(0)
    with pytest.raises(StaleWeights, match="step 4 was asked for, but 0 was pushed last"):
        policy.generate(prompts, SEEDS, 4)


@pytest.mark.parametrize("count", [1, 2])
def test_a_replica_restarted_between_steps_gets_its_weights_again(count, servers, connect, learner, prompts):
    replicas = servers(count)
    policy = connect(replicas)
    policy.start(0)
    policy.push(learn(learner), 1)
    expected = policy.generate(prompts, SEEDS, 1)
    replicas[0].stop()
    replicas[0].start()
    assert policy.generate(prompts, SEEDS, 1) == expected
    policy.push(learn(learner), 2)
    assert {r.info().model.weights_sha256 for r in replicas} == {digest(learner)}


def test_a_replica_restarted_before_a_push_gets_everything(servers, connect, learner):
    replicas = servers(2)
    policy = connect(replicas)
    policy.start(0)
    policy.push(learn(learner), 1)
    replicas[1].stop()
    replicas[1].start()
    policy.push(learn(learner), 2)
    assert {(r.info().model.step, r.info().model.weights_sha256) for r in replicas} == {(2, digest(learner))}


def test_chunks_of_a_dead_replica_are_asked_of_another(servers, connect, prompts):
    replicas = servers(2)
    policy = connect(replicas)
    policy.start(0)
    expected = policy.generate(prompts, SEEDS, 0)
    replicas[0].stop()
    assert policy.generate(prompts, SEEDS, 0) == expected


def test_replicas_that_stay_away_are_named_with_address_key_and_time(servers, connect, prompts):
    replicas = servers(1)
    policy = connect(replicas, seconds=0.3)
    policy.start(0)
    replicas[0].stop()
    where = (
        rf"policy at {replicas[0].address} \(services\.policy\[0\]\) has not answered since \d\d:\d\d:\d\d"
    )
    with pytest.raises(RoleUnavailable, match=where):
        policy.generate(prompts, SEEDS, 0)


def test_a_push_to_a_replica_that_stays_away_gives_the_others_up(servers, connect, learner):
    replicas = servers(2)
    policy = connect(replicas, seconds=0.3)
    policy.start(0)
    replicas[1].stop()
    with pytest.raises(RoleUnavailable, match=r"services\.policy\[1\]"):
        policy.push(learn(learner), 1)
    assert replicas[0].info().model.step == 0
    with WeightsClient(replicas[0].address) as weights, PolicyClient(replicas[0].address) as client:
        version = client.get_policy().model
        spec = [TensorSpec("model.norm.weight", "float32", (32,))]
        manifest = PushManifest("other", version.step, 1, spec, "0" * 64)
        weights.abort(weights.stage(manifest, [bytes(128)]))  # nothing of the failed push is left open


# Reward and reference


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
            server = stack.enter_context(serve_in_background(lambda: reward_service(options(folder), limits)))
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


@pytest.fixture
def reference_at(tiny_policy):
    with contextlib.ExitStack() as stack:

        def start(temperature, seconds=5.0):
            server = stack.enter_context(serve_in_background(lambda: reference_service(options(tiny_policy))))
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
