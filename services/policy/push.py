"""One push of weights: what it announced, the bytes that have come, and how it ended. No gRPC, no protos."""

import asyncio
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lm.placement import parse_dtype
from services.errors import InvalidInput, PreconditionFailed
from services.policy.interface import Manifest, PushState, TensorSpec, Version


@dataclass(eq=False)
class Push:
    """A push, with the room for its bytes; the room is the model's size at most, and freed at the end."""

    manifest: Manifest
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    begun: float = field(default_factory=time.monotonic)
    expires: float = 0.0
    """When it is given up unless it is touched, a `time.monotonic()`."""
    received: int = 0
    state: PushState = PushState.OPEN
    committing: "asyncio.Task[None] | None" = None
    _outcome: Version | Exception | None = None

    def __post_init__(self) -> None:
        self.total = self.manifest.nbytes
        self._buffer = bytearray(self.total)

    @property
    def version(self) -> Version:
        """What serves once it is committed."""
        return Version(self.manifest.run_id, self.manifest.new_step, self.manifest.weights_sha256)

    @property
    def expires_in(self) -> float:
        """Seconds until it is given up unless it is touched; 0 unless it is open."""
        return max(0.0, self.expires - time.monotonic()) if self.state is PushState.OPEN else 0.0

    @property
    def result(self) -> Version:
        """What serves since its commit. Raises what it ended with, each time alike."""
        if isinstance(self._outcome, Exception):
            raise self._outcome.with_traceback(None)  # else each time would add to it, and keep more alive
        assert self._outcome is not None, "asked before the end"
        return self._outcome

    def append(self, offset: int, data: bytes) -> None:
        """Takes the next bytes. Raises PreconditionFailed, InvalidInput."""
        if offset != self.received:
            text = (
                f"the server holds {self.received} bytes of this push; go on at that offset, not at {offset}"
            )
            raise PreconditionFailed("OFFSET", self.id, text)
        end = offset + len(data)
        if end > self.total:
            raise InvalidInput.at(
                "data", f"ends at byte {end}; the tensors of the manifest have {self.total} bytes in all"
            )
        self._buffer[offset:end] = data
        self.received = end

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors, as views of the bytes received."""
        offset = 0
        for spec in self.manifest.tensors:
            yield spec.name, _view(self._buffer, offset, spec)
            offset += spec.nbytes

    def end(self, state: PushState, outcome: Version | Exception) -> None:
        """Nothing changes any more, and the bytes are let go."""
        self.state, self._outcome = state, outcome
        self._buffer = bytearray()
        self.committing = None  # its frames would keep them, and so would those of an exception
        if isinstance(outcome, Exception):
            outcome.__traceback__ = outcome.__context__ = None


def _view(buffer: bytearray, offset: int, spec: TensorSpec) -> Tensor:
    dtype = parse_dtype(spec.dtype)
    return torch.frombuffer(buffer, dtype=dtype, count=spec.count, offset=offset).reshape(spec.shape)
