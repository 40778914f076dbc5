"""The weights of the served model: what fits them, their digest, and the moment they change."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from lm.digests import WeightsDigest, effective_tensors
from lm.placement import DTYPE_NAMES
from services.errors import Damaged, PreconditionFailed, Violation
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
            text = f"lists {len(specs)} tensors; the model has {len(self._parameters)}; list those alone"
            raise PreconditionFailed.at("MANIFEST", "manifest.tensors", text)
        misfits: list[Violation] = []
        seen: dict[str, str] = {}
        for index, spec in enumerate(specs):
            misfit = self._misfit(spec, f"manifest.tensors[{index}]", seen)
            if misfit:
                misfits.append(misfit)
            seen[self._first_name.get(spec.name, spec.name)] = spec.name
        if misfits:
            named = [f"{misfit.field}: {misfit.description}" for misfit in misfits[:NAMED_AT_MOST]]
            more = f"; and {len(misfits) - NAMED_AT_MOST} more" if len(misfits) > NAMED_AT_MOST else ""
            raise PreconditionFailed("MANIFEST", misfits[0].field, "; ".join(named) + more)

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
                f"manifest.weights_sha256: the weights with this push have digest {found}, not "
                f"{weights_sha256} as announced; the old ones stay, push again"
            )
        for name, tensor in named.items():
            if not bool(tensor.isfinite().all()):
                text = f"tensor {name!r} holds NaN or infinity; resume training from where it was finite"
                raise PreconditionFailed("FINITE", name, text)
        return Prepared(named, digest)

    @torch.no_grad()
    def apply(self, prepared: Prepared) -> None:
        """Puts the new weights in, where nobody computes with the old ones meanwhile."""
        for name, tensor in prepared.tensors.items():
            self._parameters[name].copy_(tensor)
        self._digest = prepared.digest

    def _misfit(self, spec: TensorSpec, path: str, seen: dict[str, str]) -> Violation | None:
        parameter = self._parameters.get(spec.name)
        if parameter is None:
            text = f"{spec.name!r} isn't one of the model's; leave it out, or serve the model that is trained"
            return Violation(f"{path}.name", text)
        own = _spec(spec.name, parameter)
        if spec.shape != own.shape:
            text = f"{spec.name!r} is {spec}; the model's is {own}; serve the model that is trained"
            return Violation(f"{path}.shape", text)
        if spec.dtype != own.dtype:
            return Violation(f"{path}.dtype", f"{spec.name!r} is {spec}; the model's is {own}; convert it")
        twin = seen.get(self._first_name[spec.name])
        if twin is None:
            return None
        text = "is listed twice; list it once" if twin == spec.name else f"is tied to {twin!r}; list one"
        return Violation(f"{path}.name", f"{spec.name!r} {text}")


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    return TensorSpec(name, DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
