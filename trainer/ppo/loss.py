"""The losses of policy and critic. One divisor: the response tokens of the whole minibatch.

Each function gives a micro-batch's share, Σ over its real tokens / divisor, so that the shares of any
split add up to the minibatch's loss and gradient.

Shapes: B sequences, T response tokens (mask_BT is True on real ones).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from trainer.ppo.kl import k2


class PolicyLoss(NamedTuple):
    """Shares of a micro-batch; each is a scalar."""

    loss: Tensor
    """Differentiable."""
    clipfrac: Tensor
    """Of tokens whose clipped loss is the larger."""
    approxkl: Tensor
    """½·(log π − log π_old)²."""
    ratio_excess: Tensor
    """ρ − 1."""
    ratio_excess_sq: Tensor
    """(ρ − 1)², for the variance."""


class ValueLoss(NamedTuple):
    """Shares of a micro-batch; each is a scalar."""

    loss: Tensor
    """Differentiable."""
    clipfrac: Tensor
    """Of tokens whose clipped loss is the larger."""


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    divisor: float,
    cliprange: float = 0.2,
    weights_BT: Tensor | None = None,
) -> PolicyLoss:
    """Σ_t w_t · max(−A_t·ρ_t, −A_t·clip(ρ_t, 1 − ε, 1 + ε)) / divisor, with ρ = π/π_old, ε = `cliprange`.

    Schulman et al. 2017, eq. 7; Ouyang et al. 2022, C.4; Huang et al. 2023, P10. w is 1, or
    `importance_weights` where the sampler was not π_old. Gradient flows through `logprobs_BT` alone.
    """
    log_ratio_BT = (logprobs_BT - old_logprobs_BT).where(mask_BT, 0.0)
    ratio_BT = log_ratio_BT.exp()
    plain_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * ratio_BT.clamp(1.0 - cliprange, 1.0 + cliprange)
    losses_BT = torch.maximum(plain_BT, clipped_BT)
    if weights_BT is not None:
        losses_BT = losses_BT * weights_BT
    fixed_BT = ratio_BT.detach()
    return PolicyLoss(
        loss=_share(losses_BT, mask_BT, divisor),
        clipfrac=_share((clipped_BT > plain_BT).to(fixed_BT.dtype), mask_BT, divisor),
        approxkl=_share(k2(log_ratio_BT.detach(), torch.zeros_like(fixed_BT)), mask_BT, divisor),
        ratio_excess=_share(fixed_BT - 1.0, mask_BT, divisor),
        ratio_excess_sq=_share((fixed_BT - 1.0).square(), mask_BT, divisor),
    )


def value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    divisor: float,
    cliprange_value: float = 0.2,
) -> ValueLoss:
    """½ · Σ_t max((V_t − R_t)², (clip(V_t, V_old ± ε) − R_t)²) / divisor, with ε = `cliprange_value`.

    LHP; Huang et al. 2023, P10. The maximum, not the minimum: clipping may only hold a value back.
    """
    values_BT = values_BT.where(mask_BT, 0.0)  # whatever stands in the padding, its gradient is 0
    # Between tensors, since V_old + clip(V − V_old) isn't V to the last bit and would count as clipped.
    moved_BT = values_BT.clamp(old_values_BT - cliprange_value, old_values_BT + cliprange_value)
    plain_BT = (values_BT - returns_BT).square()
    clipped_BT = (moved_BT - returns_BT).square()
    larger_BT = (clipped_BT > plain_BT).to(values_BT.dtype)
    return ValueLoss(
        loss=0.5 * _share(torch.maximum(plain_BT, clipped_BT), mask_BT, divisor),
        clipfrac=_share(larger_BT, mask_BT, divisor),
    )


def importance_weights(logprobs_BT: Tensor, sampler_logprobs_BT: Tensor, cap: float) -> Tensor:
    """w_t = min(π(y_t) / π_sampler(y_t), C), without gradient; C is `cap`.

    Truncated importance sampling, as in verl's docs/algo/rollout_corr.md and OpenRLHF's models/loss.py:
    π is what the ratio's denominator was computed with, π_sampler what drew the token.
    """
    return (logprobs_BT - sampler_logprobs_BT).detach().exp().clamp(max=cap)


def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> float:
    """1 − Var(R − V) / Var(R) over real tokens; 0 is no better than a constant, NaN for constant returns."""
    values_N, returns_N = values_BT[mask_BT], returns_BT[mask_BT]
    variance = returns_N.var(unbiased=False)
    return (
        float(1.0 - (returns_N - values_N).var(unbiased=False) / variance) if variance > 0 else float("nan")
    )


def _share(values_BT: Tensor, mask_BT: Tensor, divisor: float) -> Tensor:
    return values_BT.where(mask_BT, 0.0).sum() / divisor
