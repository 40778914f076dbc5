"""One prompt on its way through the system, with real servers. Read it from top to bottom.

    prompt ──Generate──▶ policy              ids, log-probabilities, which weights
           ├──Score────▶ reward              a number for the response
           ├──ComputeLogprobs──▶ reference   a log-probability for each of its tokens
           ▼
        rewards ─▶ advantages ─▶ clipped PPO ─▶ new weights ──PushWeights──▶ policy

The trainer does the same in trainer/ppo/step.py, for many prompts, and with nothing between the lines.
Shapes: B = 1 sequence, T response tokens.
"""

import pytest
import torch

from lm.digests import WeightsDigest, effective_tensors, tensor_bytes
from lm.loading import load_causal_lm, load_reward_model
from lm.placement import choose_placement
from lm.tokenizer import tokenizer_sha256
from plaudit import PolicyClient, ReferenceClient, RewardClient
from plaudit.clients import PushManifest, TensorSpec, WeightsClient
from services.policy.service import policy_service
from services.reference.service import reference_service
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from trainer.ppo.advantages import gae
from trainer.ppo.config import CriticSection, PPOSection
from trainer.ppo.critic import ValueCritic
from trainer.ppo.learner import Batch, Learner
from trainer.ppo.rewards import kl_per_token, shape_rewards
from trainer.ppo.rollout import Prompt, Response, Rollout

CPU = choose_placement("cpu", "float32", 1)
TEXT, SEED, BETA = "the film is", 7, 0.02


@pytest.fixture
def address(tiny_policy, tiny_reward):
    """Three servers, as `python -m services.policy|reference|reward` would start them."""
    make = {"policy": policy_service, "reference": reference_service, "reward": reward_service}
    model = {"policy": tiny_policy, "reference": tiny_policy, "reward": tiny_reward}

    def serve(kind):
        return serve_in_background(lambda: make[kind](ModelOptions(str(model[kind]), "cpu", "float32", 1)))

    with serve("policy") as policy, serve("reference") as reference, serve("reward") as reward:
        yield {"policy": policy.address, "reference": reference.address, "reward": reward.address}


def test_follow_one_prompt(address, tiny_policy, tiny_reward):
    # 0. The trainer holds the model that learns, and a critic started from the reward model.
    learning = load_causal_lm(str(tiny_policy), CPU)
    tokenizer_digest = tokenizer_sha256(learning.tokenizer)
    prompt_ids = tuple(learning.tokenizer(TEXT)["input_ids"])

    # 1. Generate: one deterministic request, by exactly the weights of step 0.
    with PolicyClient(address["policy"]) as policy:
        generation = policy.generate(
            [prompt_ids], max_new_tokens=8, seeds=[SEED], deterministic=True, step_exactly=0
        )
    sampled = generation.sequences[0]
    spans = [(span.step, span.start, span.end) for span in sampled.version_spans]
    assert spans == [(0, 0, len(sampled.token_ids))]
    assert generation.model.tokenizer_sha256 == tokenizer_digest
    response = Response(
        sampled.token_ids, sampled.text, tuple(sampled.logprobs.tolist()), sampled.ended, tuple(spans), SEED
    )
    rollout = Rollout.of((Prompt(0, prompt_ids, TEXT),), (response,))

    # 2. Score: prompt and response as ids, since the reward model has the same tokenizer.
    with RewardClient(address["reward"]) as reward:
        scores = reward.score(rollout.sequences, tokenizer_sha256=tokenizer_digest)
    scores_B = torch.tensor([scores[0].reward])

    # 3. ComputeLogprobs: how likely the frozen model finds the same tokens.
    with ReferenceClient(address["reference"]) as reference:
        logprobs = reference.compute_logprobs(rollout.sequences, rollout.starts)
    ref_logprobs_BT = torch.tensor(logprobs.values[0])[None]
    # Step 0: policy and reference are the same model, so the KL is 0.
    assert torch.allclose(rollout.logprobs_BT, ref_logprobs_BT, atol=1e-5)

    # 4. Rewards: −β·kl on every token, the score on the last one.
    kl_BT = kl_per_token(rollout.logprobs_BT, ref_logprobs_BT, rollout.loss_mask_BT)
    rewards_BT = shape_rewards(scores_B, kl_BT, rollout.loss_mask_BT, BETA)
    assert rewards_BT[0, -1].item() == pytest.approx(scores_B.item(), abs=1e-6)
    assert rewards_BT[0, :-1].abs().max() < 1e-6

    # 5. Advantages: what came against what the critic expected.
    critic = ValueCritic(load_reward_model(str(tiny_reward), CPU), CriticSection(path=str(tiny_reward)), CPU)
    values_BT, _ = critic.values(rollout)
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, rollout.loss_mask_BT, gamma=1.0, lam=0.95)

    # 6. Learn: the learner finds its tokens as likely as the generator did, then moves.
    settings = PPOSection(batch_size=1, num_mini_batches=1, learning_rate=1e-3, warmup_iterations=0)
    learner = Learner(
        learning, settings, trainable="all", placement=CPU, generator_dtype=torch.float32,
        temperature=1.0, seed=SEED,
    )  # fmt: skip
    own_BT, _ = learner.analyse(rollout)
    assert torch.allclose(own_BT, rollout.logprobs_BT, atol=1e-5)
    ones_BT = torch.ones_like(own_BT)
    measured = learner.update(
        Batch(rollout, rollout.logprobs_BT, advantages_BT, returns_BT, values_BT, ones_BT), critic
    )
    learner.advance(episodes=1)
    assert measured["val/ratio"] == pytest.approx(1.0, abs=1e-5)  # one update: the ratio is of before it
    moved_BT, _ = learner.analyse(rollout)
    gain = ((moved_BT - own_BT) * advantages_BT).sum()
    assert gain > 0  # tokens that did better than expected are likelier now

    # 7. Push: what changed, with the digest of the whole, staged and then swapped in.
    tensors = list(learner.changed_tensors(torch.float32))
    digest = WeightsDigest(effective_tensors(learning.model)).hexdigest()
    specs = [TensorSpec(name, "float32", tuple(tensor.shape)) for name, tensor in tensors]
    with WeightsClient(address["policy"]) as weights:
        loaded = weights.push(
            PushManifest("follow-one-prompt", 0, 1, specs, digest),
            [tensor_bytes(tensor) for _, tensor in tensors],
        )
    assert (loaded.step, loaded.weights_sha256) == (1, digest)

    # 8. The next Generate comes from step 1, and the learner agrees with it again.
    with PolicyClient(address["policy"]) as policy:
        generation = policy.generate([prompt_ids], max_new_tokens=8, seeds=[SEED], step_exactly=1)
    sampled = generation.sequences[0]
    assert [span.step for span in sampled.version_spans] == [1]
    response = Response(
        sampled.token_ids, sampled.text, tuple(sampled.logprobs.tolist()), sampled.ended, (), SEED
    )
    own_BT, _ = learner.analyse(Rollout.of(rollout.prompts, (response,)))
    assert torch.allclose(own_BT[0], torch.from_numpy(sampled.logprobs), atol=1e-5)
