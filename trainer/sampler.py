"""The order of training examples: a permutation for each pass, resumable, and no global random numbers."""

import hashlib
from typing import Any

import torch

from trainer.errors import CheckpointError


def derived_seed(seed: int, *purpose: int | str) -> int:
    """A seed for `purpose`, such as ("dropout", 12), that nothing else of the run draws from."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def permutation(size: int, seed: int, epoch: int) -> list[int]:
    """0 … size − 1 in an order that only (size, seed, epoch) decide."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "epoch", epoch))
    order: list[int] = torch.randperm(size, generator=generator).tolist()
    return order


class EpochSampler:
    """Batches of indices, each index once a pass. The last batch of a pass may be smaller."""

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        """`size` examples, at least one."""
        self._size, self._batch_size, self._seed = size, batch_size, seed
        self._epoch, self._position = 0, 0

    @property
    def batches_per_epoch(self) -> int:
        """Batches in a pass."""
        return -(-self._size // self._batch_size)

    @property
    def epochs(self) -> float:
        """Passes done so far."""
        return self._epoch + self._position / self._size

    def next_batch(self) -> list[int]:
        """The next indices."""
        order = permutation(self._size, self._seed, self._epoch)
        batch = order[self._position : self._position + self._batch_size]
        self._position += len(batch)
        if self._position == self._size:
            self._epoch, self._position = self._epoch + 1, 0
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return {"size": self._size, "seed": self._seed, "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`. Raises CheckpointError for other data."""
        if (state["size"], state["seed"]) != (self._size, self._seed):
            raise CheckpointError(
                f"the checkpoint was made with {state['size']} examples and seed {state['seed']}, "
                f"not {self._size} and {self._seed}"
            )
        self._epoch, self._position = state["epoch"], state["position"]
