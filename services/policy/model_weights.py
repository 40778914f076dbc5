"""The weights of the served model: what fits them, their digest, and the moment they change."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from lm.digests import WeightsDigest, effective_tensors
from lm.placement import DTYPE_NAMES
from services.errors import Damaged, PreconditionFailed
from services.policy.interface import TensorSpec

NAMED_AT_MOST = 5
"""Tensors that one error message names."""


@dataclass(frozen=True)
class Prepared:
    """New weights that were checked to the last byte; putting them in can't fail any more."""

    tensors: dict[str, Tensor]
    digest: WeightsDigest


class ModelWeights:
    """Parameters by name. A tied parameter answers to all its names and counts once, under the first."""

    def __init__(self, model: Module) -> None:
        """Hashes every parameter."""
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        first = {id(parameter): name for name, parameter in model.named_parameters()}
        self._first_name = {name: first[id(parameter)] for name, parameter in self._parameters.items()}
        self._digest = WeightsDigest(effective_tensors(model))

    @property
    def sha256(self) -> str:
        """Digest of the weights as they are."""
        return self._digest.hexdigest()

    def check(self, specs: Sequence[TensorSpec]) -> None:
        """Raises PreconditionFailed naming the tensors that aren't the model's, or come twice."""
        if len(specs) > len(self._parameters):
            raise PreconditionFailed(
                "MANIFEST", "tensors", f"lists {len(specs)} tensors; the model has {len(self._parameters)}"
            )
        misfits: dict[str, str] = {}
        seen: dict[str, str] = {}
        for spec in specs:
            misfit = self._misfit(spec, seen)
            if misfit:
                misfits.setdefault(spec.name, misfit)
            seen[self._first_name.get(spec.name, spec.name)] = spec.name
        if misfits:
            named = [f"{name!r} {misfit}" for name, misfit in misfits.items()]
            more = f"; and {len(named) - NAMED_AT_MOST} more" if len(named) > NAMED_AT_MOST else ""
            raise PreconditionFailed(
                "MANIFEST", next(iter(misfits)), "tensor " + "; ".join(named[:NAMED_AT_MOST]) + more
            )

    def prepare(self, tensors: Iterable[tuple[str, Tensor]], weights_sha256: str) -> Prepared:
        """Checks new weights without touching the old; takes a while, in any thread.

        Raises PreconditionFailed if they don't fit, and Damaged if the digest of the model with them
        isn't `weights_sha256`.
        """
        given = dict(tensors)
        self.check([_spec(name, tensor) for name, tensor in given.items()])
        named = {self._first_name[name]: tensor for name, tensor in given.items()}
        digest = self._digest.with_changed(named.items())
        if digest.hexdigest() != weights_sha256:
            found = digest.hexdigest()
            raise Damaged(
                f"the weights with this push have digest {found}, not {weights_sha256} as announced"
            )
        for name, tensor in named.items():
            if not bool(tensor.isfinite().all()):
                raise PreconditionFailed("FINITE", name, f"tensor {name!r} holds NaN or infinity")
        return Prepared(named, digest)

    @torch.no_grad()
    def apply(self, prepared: Prepared) -> None:
        """Puts the new weights in, where nobody computes with the old ones meanwhile."""
        for name, tensor in prepared.tensors.items():
            self._parameters[name].copy_(tensor)
        self._digest = prepared.digest

    def _misfit(self, spec: TensorSpec, seen: dict[str, str]) -> str:
        parameter = self._parameters.get(spec.name)
        if parameter is None:
            return "isn't one of the model's"
        own = _spec(spec.name, parameter)
        if spec != own:
            return f"is {spec}; the model's is {own}"
        twin = seen.get(self._first_name[spec.name])
        if twin is None:
            return ""
        return "is listed twice" if twin == spec.name else f"is tied to {twin!r}; list one of them"


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    return TensorSpec(name, DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
