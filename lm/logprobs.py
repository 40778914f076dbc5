"""The one log-probability function: policy, reference and learner all compute with it.

Logits in float32 (float64 stays), divided by the sampling temperature, log-softmax, gather
(Huang et al. 2023, detail P1). Logits exist for response positions only, a chunk of them at a time.

Shapes: B sequences, L padded length, H hidden size, V vocabulary, N selected positions (all
sequences' response tokens, row after row), T response tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lm.errors import ModelLoadError
from lm.padding import right_pad

CHUNK = 512
"""Positions whose logits exist at once: at 50k tokens of vocabulary, 100 MB in float32."""


def logits_from_hidden(model: PreTrainedModel, hidden_NH: Tensor) -> Tensor:
    """logits_NV of last hidden states, with the caps and scales some architectures put behind the head."""
    logits_NV: Tensor = model.get_output_embeddings()(hidden_NH)
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None)  # Cohere multiplies
    if scale is not None:
        logits_NV = logits_NV * scale
    scaling = getattr(config, "logits_scaling", None)  # Granite divides
    if scaling is not None:
        logits_NV = logits_NV / scaling
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    return logits_NV if cap is None else torch.tanh(logits_NV / cap) * cap


def check_logits(model: PreTrainedModel) -> None:
    """Raises ModelLoadError where `logits_from_hidden` isn't what the model's own forward gives."""
    ids_BL = torch.arange(1, 4, device=model.device)[None]
    with torch.inference_mode():
        own = model(input_ids=ids_BL, use_cache=False).logits[0].float()
        ours = logits_from_hidden(model, model.base_model(input_ids=ids_BL, use_cache=False)[0][0]).float()
    if not torch.allclose(own, ours, rtol=1e-2, atol=1e-2):
        kind = model.config.model_type
        raise ModelLoadError(
            f"architecture {kind!r} changes its logits after the output layer in an unknown way"
        )


def scaled_logits(logits_NV: Tensor, temperature: float) -> Tensor:
    """float32 (or float64) logits divided by the temperature."""
    wide_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    return wide_NV if temperature == 1.0 else wide_NV / temperature


def logprobs_from_logits(logits_NV: Tensor, ids_N: Tensor, temperature: float = 1.0) -> Tensor:
    """logprobs_N = log softmax(logits_NV / temperature)[ids_N], in float32 at least."""
    wide_NV = scaled_logits(logits_NV, temperature)
    picked_N = wide_NV.gather(-1, ids_N[:, None]).squeeze(-1)
    return picked_N - wide_NV.logsumexp(dim=-1)


def entropy_from_logits(logits_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """entropy_N of softmax(logits_NV / temperature), in nats."""
    logprobs_NV = scaled_logits(logits_NV, temperature).log_softmax(dim=-1)
    return -(logprobs_NV.exp() * logprobs_NV).sum(dim=-1)


def response_logprobs(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    temperature: float = 1.0,
) -> Tensor:
    """logprobs_N of tokens start, start + 1, … of each sequence given all before; differentiable.

    `sequences` are ids without padding, 1 <= start < length. N = sum of (length - start).
    """
    hidden_NH, ids_N = response_hidden(model, sequences, starts)
    chunks = [
        logprobs_from_logits(logits_from_hidden(model, hidden), ids, temperature)
        for hidden, ids in zip(hidden_NH.split(CHUNK), ids_N.split(CHUNK), strict=True)
    ]
    return torch.cat(chunks)


@torch.no_grad()
def response_logprobs_and_entropy(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(logprobs_N, entropy_N) in one pass, without gradient."""
    hidden_NH, ids_N = response_hidden(model, sequences, starts)
    logprobs, entropies = [], []
    for hidden, ids in zip(hidden_NH.split(CHUNK), ids_N.split(CHUNK), strict=True):
        logits = logits_from_hidden(model, hidden)
        logprobs.append(logprobs_from_logits(logits, ids, temperature))
        entropies.append(entropy_from_logits(logits, temperature))
    return torch.cat(logprobs), torch.cat(entropies)


def unflatten(values_N: Tensor, counts: Sequence[int], width: int | None = None) -> Tensor:
    """values_BT from values_N: row b holds the next counts[b] values, then zeros."""
    width = max(counts) if width is None else width
    rows = values_N.split(list(counts))
    return torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])


def response_hidden(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], starts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """hidden_NH at the positions that predict the response tokens, and those tokens' ids_N."""
    ids_BL, lengths_B = right_pad(sequences, device=model.device)
    hidden_BLH = model.base_model(input_ids=ids_BL, use_cache=False)[0]
    positions_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
    starts_B = torch.tensor(list(starts), device=ids_BL.device)
    wanted_BL = (positions_L >= starts_B[:, None]) & (positions_L < lengths_B[:, None])
    return hidden_BLH[:, :-1][wanted_BL[:, 1:]], ids_BL[wanted_BL]
