"""Scores of a reward model in Hugging Face's sequence-classification format.

Shapes: B sequences, L padded length, H hidden size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lm.padding import right_pad


def score_positions(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Index of the token each sequence is scored at, by Hugging Face's rule on unpadded ids.

    The rightmost token whose id isn't `pad_token_id`, or the last one where the model has no pad.
    Ours is the EOS (Huang et al. 2023, detail R1); a model with pad = EOS is read one token earlier,
    as its own forward reads it.
    """
    pad = model.config.get_text_config().pad_token_id
    return torch.tensor([_last_not(sequence, pad) for sequence in sequences])


def sequence_scores(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Raw scores_B; differentiable. `sequences` are ids without padding."""
    ids_BL, lengths_B = right_pad(sequences, device=model.device)
    if not is_decoder(model):
        mask_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device) < lengths_B[:, None]
        scores_B: Tensor = model(input_ids=ids_BL, attention_mask=mask_BL.long()).logits[:, 0]
        return scores_B
    hidden_BLH = model.base_model(input_ids=ids_BL, use_cache=False)[0]
    rows_B = torch.arange(len(sequences), device=ids_BL.device)
    last_BH = hidden_BLH[rows_B, score_positions(model, sequences).to(ids_BL.device)]
    scores_B = model.get_submodule("score")(last_BH)[:, 0]
    return scores_B


def is_decoder(model: PreTrainedModel) -> bool:
    """Whether the model scores one token's state with a `score` layer, as all causal architectures do."""
    return hasattr(model, "score")


def _last_not(sequence: Sequence[int], pad: int | None) -> int:
    real = (index for index in range(len(sequence) - 1, -1, -1) if sequence[index] != pad)
    return next(real, len(sequence) - 1)
