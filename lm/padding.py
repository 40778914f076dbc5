"""Ragged sequences as rectangles. What is real says a length or a mask, never a token id.

Shapes: B sequences, L longest length.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def right_pad(
    sequences: Sequence[Sequence[int]], pad_id: int = 0, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """int64 ids_BL padded on the right, and lengths_B.

    Under causal attention what stands on the right can't reach a real token, so no mask is needed.
    """
    lengths_B = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
    ids_BL = torch.full((len(sequences), int(lengths_B.max())), pad_id, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids_BL[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
    return ids_BL.to(device), lengths_B.to(device)


def left_pad(
    sequences: Sequence[Sequence[int]], pad_id: int = 0, device: torch.device | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """int64 ids_BL padded on the left, attention_mask_BL (1 = real) and position_ids_BL.

    Positions are the cumulative sum of the mask minus 1, clamped at 0, so that a sequence's first
    real token is at 0 wherever it stands (Huang et al. 2023, detail G3).
    """
    width = max(len(sequence) for sequence in sequences)
    ids_BL = torch.full((len(sequences), width), pad_id, dtype=torch.int64)
    mask_BL = torch.zeros_like(ids_BL)
    for row, sequence in enumerate(sequences):
        ids_BL[row, width - len(sequence) :] = torch.tensor(sequence, dtype=torch.int64)
        mask_BL[row, width - len(sequence) :] = 1
    positions_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)
    return ids_BL.to(device), mask_BL.to(device), positions_BL.to(device)
