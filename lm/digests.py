"""Digests of weights, made so that a push of some tensors rehashes only those."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from lm.placement import DTYPE_NAMES


@dataclass(frozen=True)
class TensorHash:
    """What stands for one tensor in the digest of a model."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's elements, row-major and little-endian, as in a safetensors file."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def hash_tensor(tensor: Tensor) -> TensorHash:
    """dtype, shape and the SHA-256 of the bytes."""
    digest = hashlib.sha256(tensor_bytes(tensor)).hexdigest()
    return TensorHash(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), digest)


def effective_tensors(model: Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters by name; tied ones once, under the first name. Buffers are derived, so left out."""
    yield from model.named_parameters(remove_duplicate=True)


class WeightsDigest:
    """Running digest of a model's effective tensors, in the type they are served in."""

    def __init__(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Hashes every tensor once."""
        self._hashes = {name: hash_tensor(tensor) for name, tensor in named}

    @property
    def names(self) -> frozenset[str]:
        """Names of the tensors."""
        return frozenset(self._hashes)

    def with_changed(self, named: Iterable[tuple[str, Tensor]]) -> "WeightsDigest":
        """The digest after these tensors changed; the others are not hashed again. Raises KeyError."""
        changed = {name: hash_tensor(tensor) for name, tensor in named}
        unknown = changed.keys() - self._hashes.keys()
        if unknown:
            raise KeyError(f"not a tensor of this model: {sorted(unknown)[0]}")
        copy = WeightsDigest(())
        copy._hashes = {**self._hashes, **changed}
        return copy

    def hexdigest(self) -> str:
        """SHA-256 over the sorted (name, dtype, shape, hash) lines, in lower-case hex."""
        total = hashlib.sha256()
        for name, entry in sorted(self._hashes.items()):
            shape = ",".join(str(size) for size in entry.shape)
            total.update(f"{name}\t{entry.dtype}\t{shape}\t{entry.sha256}\n".encode())
        return total.hexdigest()
