"""One PPO step: collect, then learn. Knows the four roles, and nothing of how they are reached.

Shapes: B sequences, T response tokens (right-padded).
"""

import time
from collections.abc import Sequence

import torch

from trainer.ppo.advantages import gae, whiten
from trainer.ppo.collect import ScoredExperience, collect, join, keep_scored, prompt_seeds
from trainer.ppo.config import PPOSection
from trainer.ppo.kl import KLController
from trainer.ppo.learner import Batch, Learner
from trainer.ppo.loss import explained_variance, importance_weights
from trainer.ppo.measure import mismatch_measures, response_measures, reward_measures
from trainer.ppo.rewards import apply_missing_eos, kl_per_token, shape_rewards
from trainer.ppo.roles import Critic, Roles
from trainer.ppo.rollout import Prompt
from trainer.tracing import span


def ppo_step(
    prompts: Sequence[Prompt],
    roles: Roles,
    learner: Learner,
    critic: Critic,
    kl: KLController,
    config: PPOSection,
    *,
    seed: int,
    collect_size: int | None = None,
) -> dict[str, float]:
    """One iteration by the weights of `learner.step`; afterwards its new weights are there to be pushed.

    Returns the metrics of docs/metrics.md; for counters (dropped_rewards, skipped_updates, kl_stops)
    what this step adds. Raises what the roles raise, RewardMissing and NotFinite.
    """
    began, step = time.perf_counter(), learner.step
    seeds = prompt_seeds(seed, step, len(prompts))
    collected = join(collect(prompts, seeds, step, roles, collect_size))  # RPC 1, then 2 and 3 at once
    experience = keep_scored(collected, config.on_reward_error)
    learning = time.perf_counter()
    metrics = learn(experience, learner, critic, kl, config)
    learner.advance(len(prompts))  # run.py pushes: RPC 4
    ended = time.perf_counter()
    return metrics | collected.seconds | {
        "time/learn": ended - learning,
        "policy_lag": float(step - experience.rollout.policy_steps[0]),
        "dropped_rewards": float(experience.dropped),
        "episode": float(learner.episodes),
        "eps": len(prompts) / (ended - began),
        "tokens_per_second": float(collected.rollout.loss_mask_BT.sum()) / (ended - began),
    }  # fmt: skip


@span("learn")
def learn(
    experience: ScoredExperience, learner: Learner, critic: Critic, kl: KLController, config: PPOSection
) -> dict[str, float]:
    """Rewards → GAE → epochs × minibatches; β is updated last, so that it was one value all the step."""
    rollout, mask_BT = experience.rollout, experience.rollout.loss_mask_BT
    own_BT, entropy_BT = learner.analyse(rollout)
    old_BT = rollout.logprobs_BT if learner.trusts_generator else own_BT
    scores_B = apply_missing_eos(
        experience.scores_B, rollout.ended_B, config.missing_eos, config.missing_eos_penalty
    )
    kl_BT = kl_per_token(old_BT, experience.ref_logprobs_BT, mask_BT)
    rewards_BT = shape_rewards(scores_B, kl_BT, mask_BT, kl.value)
    if config.whiten_rewards:
        rewards_BT = whiten(rewards_BT, mask_BT, shift_mean=False)
    critic.prepare(rollout, rewards_BT)
    values_BT, after_B = critic.values(rollout)
    bootstrap_B = after_B.where(~rollout.ended_B, 0.0) if config.bootstrap_truncated else None
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, config.gamma, config.lam, bootstrap_B)
    if config.whiten_advantages:
        advantages_BT = whiten(advantages_BT, mask_BT)
    cap = config.tis_cap
    weights_BT = importance_weights(old_BT, rollout.logprobs_BT, cap) if cap else torch.ones_like(old_BT)
    metrics = {
        **reward_measures(scores_B, kl_BT, old_BT, kl.value),
        **response_measures(rollout),
        **mismatch_measures(own_BT, rollout),
        "policy/entropy_avg": float(entropy_BT[mask_BT].mean()),
        "val/explained_variance": explained_variance(values_BT, returns_BT, mask_BT),
        "lr": learner.learning_rate,
    }
    metrics |= learner.update(
        Batch(rollout, old_BT, advantages_BT, returns_BT, values_BT, weights_BT), critic
    )
    kl.update(metrics["objective/kl"], len(rollout.responses))
    return metrics
