"""What a rollout measures before anything is learned from it, under the peers' names (TRL's PPO trainer).

Shapes: B sequences, T response tokens (right-padded; masked values are 0).
"""

from torch import Tensor

from trainer.ppo.kl import k3
from trainer.ppo.rollout import Rollout


def reward_measures(
    scores_B: Tensor, kl_BT: Tensor, old_logprobs_BT: Tensor, kl_coef: float
) -> dict[str, float]:
    """objective/*: means over sequences of what the policy is trained on; KL and entropy in nats.

    objective/scores is after the missing-EOS rule. objective/entropy is the sample's, Σ −log π_old.
    """
    kl = float(kl_BT.sum(dim=1).mean())
    scores = float(scores_B.mean())
    return {
        "objective/kl": kl,
        "objective/entropy": float(-old_logprobs_BT.sum(dim=1).mean()),
        "objective/scores": scores,
        "objective/scores_std": float(scores_B.std(unbiased=False)),
        "objective/non_score_reward": -kl_coef * kl,
        "objective/rlhf_reward": scores - kl_coef * kl,
        "objective/kl_coef": kl_coef,
    }


def response_measures(rollout: Rollout) -> dict[str, float]:
    """Ends and lengths of the responses, in tokens."""
    ended = int(rollout.ended_B.sum())
    count = len(rollout.responses)
    lengths_B = rollout.loss_mask_BT.sum(dim=1)
    return {
        "val/num_eos_tokens": float(ended),
        "val/eos_rate": ended / count,
        "response_length/mean": float(lengths_B.double().mean()),
        "response_length/max": float(lengths_B.max()),
        "response_length/clip_ratio": 1.0 - ended / count,
    }


def mismatch_measures(logprobs_BT: Tensor, rollout: Rollout) -> dict[str, float]:
    """How far the trainer's `logprobs_BT` are from the generator's for the same weights and tokens."""
    ours_N = logprobs_BT[rollout.loss_mask_BT]
    generators_N = rollout.logprobs_BT[rollout.loss_mask_BT]
    difference_N = (ours_N - generators_N).abs()
    return {
        "mismatch/logprob_abs_mean": float(difference_N.mean()),
        "mismatch/logprob_abs_max": float(difference_N.max()),
        "mismatch/kl": float(k3(generators_N, ours_N).mean()),
    }
