"""Per-token rewards: the score once, at the last response token, and a KL penalty on every token.

Shapes: B sequences, T response tokens (right-padded; mask_BT is True on real ones).
"""

from typing import Literal

import torch
from torch import Tensor


def kl_per_token(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """kl_t = log π_old(y_t) − log π_ref(y_t), estimator k1; 0 where masked.

    Ouyang et al. 2022, eq. 2; Huang et al. 2023, P8. One sample's kl_t may be negative; a mean over
    many that stays negative means that sampler and scorer disagree.
    """
    return (logprobs_BT - ref_logprobs_BT).where(mask_BT, 0.0)


def apply_missing_eos(
    scores_B: Tensor, ended_B: Tensor, mode: Literal["replace", "subtract", "none"], penalty: float
) -> Tensor:
    """Scores of responses that never ended: −penalty ("replace", LHP) or score − penalty ("subtract", TRL).

    Huang et al. 2024, detail 23. `ended_B` says what ended by itself; ids are not looked at. Both
    modes presume a normalised reward.
    """
    if mode == "none":
        return scores_B
    punished_B = torch.full_like(scores_B, -penalty) if mode == "replace" else scores_B - penalty
    return scores_B.where(ended_B, punished_B)


def shape_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, kl_coef: float) -> Tensor:
    """r_t = −β·kl_t, plus the score at the last response token; 0 where masked.

    Ouyang et al. 2022, section 3.5 and eq. 2; β is `kl_coef`. The last response token is the EOS, or
    the last one sampled if the response was cut. Raises ValueError for a row without tokens.
    """
    if not bool(mask_BT.any(dim=1).all()):
        raise ValueError("a response has no tokens, so there is no place for its score")
    width = mask_BT.shape[1]
    positions_T = torch.arange(width, device=mask_BT.device)
    last_B = (positions_T * mask_BT).max(dim=1).values
    is_last_BT = positions_T == last_B[:, None]
    return (-kl_coef * kl_BT + is_last_BT * scores_B[:, None]).where(mask_BT, 0.0)
