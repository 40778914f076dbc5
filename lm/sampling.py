"""Drawing tokens: random numbers anybody can recompute, and the inverse of the distribution function.

Shapes: B rows, V vocabulary, K likeliest tokens or blocks of tokens, W tokens in a block.
"""

import struct
from hashlib import blake2b

import torch
from torch import Tensor

from lm.logprobs import logprobs_from_logits, scaled_logits

BLOCK = 256
"""Tokens summed up at once in the search for the one that was drawn."""


class NotFinite(ArithmeticError):
    """The model's logits are NaN or infinite: its weights are broken."""


def uniform(seed: int, sample: int, position: int) -> float:
    """The random number in [0, 1) of one token: a pure function, with no generator and no state.

    BLAKE2b (RFC 7693, unkeyed, 8-byte digest) over the 24 bytes seed, sample, position, each an
    unsigned 64-bit little-endian integer; the digest read as a little-endian integer, its upper 53
    bits divided by 2**53. `sample` is the sample index of the prompt, `position` counts the
    response's tokens from 0.
    """
    digest = blake2b(struct.pack("<QQQ", seed, sample, position), digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 11) / float(1 << 53)


def sample(
    logits_BV: Tensor, uniforms_B: Tensor, temperature: float, top_k: int, top_p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws one token a row: (ids_B, logprobs_B of the sampled distribution, logprobs_B at temperature 1).

    The distribution is softmax(logits / temperature), cut to the `top_k` likeliest (0 = all), of
    what is left to the smallest set whose mass reaches `top_p`, and renormalised. Temperature 0
    takes the likeliest token, with log-probability 0. Computes in float32, or float64 for float64
    logits. Raises NotFinite.
    """
    wide_BV = scaled_logits(logits_BV, 1.0)
    if temperature == 0:
        ids_B = _likeliest(wide_BV)
        return ids_B, torch.zeros_like(wide_BV[:, 0]), logprobs_from_logits(wide_BV, ids_B)
    cut_BV = _truncate(scaled_logits(wide_BV, temperature), top_k, top_p)
    ids_B = _inverse_cdf(cut_BV.softmax(dim=-1), uniforms_B)
    logprobs_B = logprobs_from_logits(cut_BV, ids_B)
    if cut_BV is wide_BV:
        return ids_B, logprobs_B, logprobs_B
    return ids_B, logprobs_B, logprobs_from_logits(wide_BV, ids_B)


def _likeliest(logits_BV: Tensor) -> Tensor:
    best_B, ids_B = logits_BV.max(dim=-1)
    _check_finite(best_B)
    return ids_B


def _truncate(logits_BV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with -inf outside top-k, then top-p; the same tensor where neither cuts anything."""
    vocabulary = logits_BV.shape[-1]
    k = min(top_k or vocabulary, vocabulary)
    if k == vocabulary and top_p >= 1:
        return logits_BV
    kept_BK, indices_BK = logits_BV.topk(k, dim=-1)
    if top_p < 1:
        probabilities_BK = kept_BK.softmax(dim=-1)
        # In float64: on a GPU, long sums of float32 numbers come out otherwise each time.
        mass_before_BK = probabilities_BK.cumsum(dim=-1, dtype=torch.float64).roll(1, dims=-1)
        mass_before_BK[:, 0] = 0
        kept_BK = kept_BK.masked_fill(mass_before_BK >= top_p, -torch.inf)
    return torch.full_like(logits_BV, -torch.inf).scatter(-1, indices_BK, kept_BK)


def _inverse_cdf(probabilities_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds u, found by blocks and then within one.

    The whole vocabulary's cumulative sums would take ten times as long, torch.multinomial a hundred.
    """
    rows_B = torch.arange(len(probabilities_BV), device=probabilities_BV.device)
    missing = -probabilities_BV.shape[1] % BLOCK
    if missing:  # a padding of 0 would copy, too
        probabilities_BV = torch.nn.functional.pad(probabilities_BV, (0, missing))
    blocks_BKW = probabilities_BV.view(len(rows_B), -1, BLOCK)
    cumulative_BK = blocks_BKW.sum(dim=-1).cumsum(dim=-1)
    _check_finite(cumulative_BK[:, -1])
    points_B = uniforms_B.to(cumulative_BK.dtype) * cumulative_BK[:, -1]
    block_B = _first_above(cumulative_BK, points_B)
    before_BK = torch.nn.functional.pad(cumulative_BK, (1, 0))
    within_BW = blocks_BKW[rows_B, block_B].cumsum(dim=-1)
    return block_B * BLOCK + _first_above(within_BW, points_B - before_BK[rows_B, block_B])


def _first_above(cumulative_BN: Tensor, points_B: Tensor) -> Tensor:
    """Index of the first cumulative sum above each point.

    Points are kept below the total, which rounding may put them at: so the index is below N, and
    what is there is above 0.
    """
    total_B = cumulative_BN[:, -1]
    points_B = torch.minimum(points_B, total_B.nextafter(torch.zeros_like(total_B)))
    return torch.searchsorted(cumulative_BN, points_B[:, None], right=True).squeeze(-1)


def _check_finite(values_B: Tensor) -> None:
    if not bool(values_B.isfinite().all()):
        raise NotFinite("the model's logits are not finite; its weights are broken")
