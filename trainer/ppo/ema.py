"""Exponential moving average of weights (Ouyang et al. 2022, C.4): what is shipped, never what samples."""

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.errors import CheckpointError


class MovingAverage:
    """θ̄ ← d·θ̄ + (1 − d)·θ after each optimiser step, started at the first weights.

    Half-life ln 2 / −ln d steps: 86 at d = 0.992.
    """

    def __init__(self, decay: float, weights: Mapping[str, Tensor]) -> None:
        """Copies `weights` (by name) as they are now; `decay` is d, 0 < d < 1."""
        self._decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in weights.items()}
        """The average by name; read only."""

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """One step towards `weights`."""
        for name, average in self.tensors.items():
            average.lerp_(weights[name], 1.0 - self._decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The live tensors, not copies."""
        return dict(self.tensors)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`. Raises CheckpointError if the names differ."""
        if state.keys() != self.tensors.keys():
            raise CheckpointError("the checkpoint's moving average is of other parameters")
        for name, average in self.tensors.items():
            average.copy_(state[name])
