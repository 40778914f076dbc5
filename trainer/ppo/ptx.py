"""The pretraining mix of PPO-ptx: which text is next (Ouyang et al. 2022, eq. 2 and C.4)."""

from collections.abc import Sequence
from typing import Any

import torch

from trainer.errors import CheckpointError, DataError


class PretrainingMix:
    """Endless pieces of pretraining text, each once per pass, in an order of its own random numbers."""

    def __init__(self, documents: Sequence[Sequence[int]], length: int, seed: int) -> None:
        """Cuts `documents` (token ids) into pieces of at most `length` tokens.

        A piece of one token predicts nothing and is left out. Raises DataError if none remains.
        """
        self._pieces = [
            tuple(document[start : start + length])
            for document in documents
            for start in range(0, len(document), length)
            if len(document) - start >= 2
        ]
        if not self._pieces:
            raise DataError("the pretraining text holds no piece of two tokens or more")
        self._generator = torch.Generator().manual_seed(seed)
        self._upcoming: list[int] = []

    def __len__(self) -> int:
        """Pieces in a pass."""
        return len(self._pieces)

    def take(self, count: int) -> list[tuple[int, ...]]:
        """The next `count` pieces."""
        while len(self._upcoming) < count:
            self._upcoming += torch.randperm(len(self._pieces), generator=self._generator).tolist()
        taken, self._upcoming = self._upcoming[:count], self._upcoming[count:]
        return [self._pieces[index] for index in taken]

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        upcoming = torch.tensor(self._upcoming, dtype=torch.int64)
        return {"pieces": len(self), "upcoming": upcoming, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`. Raises CheckpointError for other text."""
        if state["pieces"] != len(self):
            raise CheckpointError(
                f"the checkpoint had {state['pieces']} pieces of pretraining text, not {len(self)}"
            )
        self._upcoming = state["upcoming"].tolist()
        self._generator.set_state(state["generator"])
