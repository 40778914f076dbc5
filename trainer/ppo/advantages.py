"""From rewards and values to advantages and returns.

Shapes: B sequences, T response tokens (mask_BT is True on real ones). Index t: r_t is the reward for
token t, V_t the value read at the position before it.
"""

import torch
from torch import Tensor


def gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    mask_BT: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns, both 0 where masked.

    δ_t = r_t + γ·V_{t+1} − V_t;  A_t = δ_t + γλ·A_{t+1};  R_t = A_t + V_t
    (Schulman et al. 2016, eq. 11–16). After a sequence's last token V is 0, or `bootstrap_B` where
    given, and A is 0. Over masked positions A and V are carried, so padding on either side, or tokens
    the policy did not write, never enter (as in verl's `compute_gae_advantage_return`).
    """
    advantage_B = torch.zeros_like(values_BT[:, 0])
    next_value_B = torch.zeros_like(advantage_B) if bootstrap_B is None else bootstrap_B
    columns = []
    for t in reversed(range(values_BT.shape[1])):
        real_B = mask_BT[:, t]
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        advantage_B = (delta_B + gamma * lam * advantage_B).where(real_B, advantage_B)
        next_value_B = values_BT[:, t].where(real_B, next_value_B)
        columns.append(advantage_B)
    advantages_BT = torch.stack(columns[::-1], dim=1).where(mask_BT, 0.0)
    return advantages_BT, (advantages_BT + values_BT).where(mask_BT, 0.0)


def whiten(values_BT: Tensor, mask_BT: Tensor, shift_mean: bool = True) -> Tensor:
    """(x − mean) / √(var + 1e-8) over all real tokens, plus the mean again unless `shift_mean`.

    Huang et al. 2023, P9 (advantages) and LHP's `whiten(shift_mean=False)` (rewards). Biased variance,
    as TF1's moments; 0 where masked.
    """
    real_N = values_BT[mask_BT]
    mean = real_N.mean()
    whitened_BT = (values_BT - mean) * torch.rsqrt(real_N.var(unbiased=False) + 1e-8)
    if not shift_mean:
        whitened_BT = whitened_BT + mean
    return whitened_BT.where(mask_BT, 0.0)
