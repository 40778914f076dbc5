"""Scores of a reward model in Hugging Face's sequence-classification format.

Shapes: B sequences, L padded length, H hidden size, A outputs (`num_labels`).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lm.padding import right_pad

Types = Sequence[Sequence[int] | None]
"""Token types of each sequence; None for none."""

Reader = Callable[[PreTrainedModel, Sequence[Sequence[int]], Types], Tensor]
"""From sequences without padding, and their token types, to raw scores_BA."""


def score_positions(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Index of the token each sequence is scored at, by Hugging Face's rule on unpadded ids.

    The rightmost token whose id isn't `pad_token_id`, or the last one where the model has no pad.
    Ours is the EOS (Huang et al. 2023, detail R1); a model with pad = EOS is read one token earlier,
    as its own forward reads it.
    """
    pad = _pad_id(model)
    return torch.tensor([_last_not(sequence, pad) for sequence in sequences])


def sequence_scores(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Raw scores_B, the first output; differentiable. `sequences` are ids without padding."""
    read = last_token_scores if is_decoder(model) else padded_scores
    scores_B: Tensor = read(model, sequences, [None] * len(sequences))[:, 0]
    return scores_B


def is_decoder(model: PreTrainedModel) -> bool:
    """Whether the model scores one token's state with a `score` layer, as causal architectures do."""
    return hasattr(model, "score")


def choose_reader(model: PreTrainedModel) -> Reader:
    """The fastest way to score a batch that gives each sequence what the model's forward gives it alone.

    Tried on short sequences, since a class's name doesn't tell: some decoders pool in a way of their
    own, some models take padding for text.
    """
    for read in (last_token_scores, padded_scores):
        if _agrees(model, read):
            return read
    return one_by_one


def last_token_scores(model: PreTrainedModel, sequences: Sequence[Sequence[int]], types: Types) -> Tensor:
    """scores_BA of a causal model: its `score` layer at one token each; needs no mask and no pad."""
    ids_BL, _ = right_pad(sequences, device=model.device)
    hidden_BLH = model.base_model(input_ids=ids_BL, use_cache=False)[0]
    rows_B = torch.arange(len(sequences), device=ids_BL.device)
    last_BH = hidden_BLH[rows_B, score_positions(model, sequences).to(ids_BL.device)]
    scores_BA: Tensor = model.get_submodule("score")(last_BH)
    return scores_BA


def padded_scores(model: PreTrainedModel, sequences: Sequence[Sequence[int]], types: Types) -> Tensor:
    """scores_BA of the model's own forward over sequences padded on the right."""
    ids_BL, lengths_B = right_pad(sequences, max(0, _pad_id(model) or 0), model.device)
    mask_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device) < lengths_B[:, None]
    inputs = {"input_ids": ids_BL, "attention_mask": mask_BL.long()}
    if any(each is not None for each in types):
        known = [each or [0] * len(ids) for each, ids in zip(types, sequences, strict=True)]
        inputs["token_type_ids"], _ = right_pad(known, device=model.device)
    scores_BA: Tensor = model(**inputs).logits
    return scores_BA


def one_by_one(model: PreTrainedModel, sequences: Sequence[Sequence[int]], types: Types) -> Tensor:
    """scores_BA of the model's own forward over each sequence alone: for models that mind padding."""
    pairs = zip(sequences, types, strict=True)
    return torch.cat([padded_scores(model, [ids], [each]) for ids, each in pairs])


@torch.inference_mode()
def _agrees(model: PreTrainedModel, read: Reader) -> bool:
    """Whether sequences of several lengths beside each other have the scores that each has alone.

    By the measure of how these differ, and with room for rounding: a tenth of that in bfloat16.
    """
    first = model.get_input_embeddings().get_parameter("weight").shape[0] // 2
    sequences = [range(first + at, first + at + n) for at, n in enumerate((16, 2, 3, 4, 6, 8))]
    types = [None] * len(sequences)
    try:
        alone_BA = one_by_one(model, sequences, types).double()
        error = _rms(read(model, sequences, types).double() - alone_BA)
    except Exception:  # a forward may demand an EOS, a pad id or a `score` that isn't there
        return False
    rounding = max(torch.finfo(dtype).eps for dtype in (model.dtype, torch.float32))
    return error <= 2 * math.sqrt(rounding) * _rms(alone_BA - alone_BA.mean(dim=0))


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _pad_id(model: PreTrainedModel) -> int | None:
    pad: int | None = getattr(model.config.get_text_config(), "pad_token_id", None)
    return pad


def _last_not(sequence: Sequence[int], pad: int | None) -> int:
    real = (index for index in range(len(sequence) - 1, -1, -1) if sequence[index] != pad)
    return next(real, len(sequence) - 1)
