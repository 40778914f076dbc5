"""A push of weights on its way in: announced, received in chunks, verified, handed to the engine.

States: none → open (`begin`) → receiving (`append`) → committing (`commit`) → none. `abort`, a
failed commit, or silence for too long lead back to none at any time, with the old weights serving.
Knows bytes and tensors, neither gRPC nor protos; all methods belong to one event loop.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lm.placement import parse_dtype
from services.errors import (
    Conflict,
    Damaged,
    InvalidInput,
    PreconditionFailed,
    ServiceError,
    UnknownName,
    Violation,
)
from services.policy.interface import Engine, Manifest, SwapMode, TensorSpec, Version
from services.policy.metrics import PolicyMetrics

IDLE_SECONDS = 120.0
"""A push that nobody has touched for so long is given up, so that a dead trainer locks nobody out."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass
class _Push:
    """A push that is open, with the room for its bytes; the room is the model's size at most."""

    manifest: Manifest
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    begun: float = field(default_factory=time.monotonic)
    received: int = 0
    committing: bool = False

    def __post_init__(self) -> None:
        self.buffer = bytearray(self.manifest.nbytes)

    def append(self, offset: int, data: bytes) -> None:
        """Takes the next bytes. Raises PreconditionFailed, InvalidInput."""
        if offset != self.received:
            text = (
                f"the server holds {self.received} bytes of this push; go on at that offset, not at {offset}"
            )
            raise PreconditionFailed("OFFSET", self.id, text)
        end = offset + len(data)
        if end > len(self.buffer):
            raise InvalidInput.at(
                "data",
                f"ends at byte {end}; the tensors of the manifest have {len(self.buffer)} bytes in all",
            )
        self.buffer[offset:end] = data
        self.received = end

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors, as views of the bytes received."""
        offset = 0
        for spec in self.manifest.tensors:
            yield spec.name, _view(self.buffer, offset, spec)
            offset += spec.nbytes


class Pushes:
    """At most one push at a time."""

    def __init__(self, engine: Engine, metrics: PolicyMetrics, idle_seconds: float = IDLE_SECONDS) -> None:
        self._engine = engine
        self._metrics = metrics
        self._idle_seconds = idle_seconds
        self._push: _Push | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, manifest: Manifest) -> tuple[str, int]:
        """Opens a push; returns its id and the bytes that must come.

        Raises InvalidInput for a manifest that makes no sense, Conflict while another push is open,
        PreconditionFailed for one that doesn't fit the loaded weights.
        """
        _check_form(manifest)
        if self._push is not None:
            raise Conflict(
                f"run {self._push.manifest.run_id!r} is pushing step {self._push.manifest.new_step}; "
                f"a push nobody touches is given up after {self._idle_seconds:g} s"
            )
        self._check_steps(manifest)
        self._engine.check_tensors(manifest.tensors)
        self._push = _Push(manifest)
        self._touch()
        return self._push.id, manifest.nbytes

    def append(self, push_id: str, offset: int, data: bytes) -> int:
        """Takes the next bytes; returns how many there are now.

        Raises UnknownName, PreconditionFailed with the offset to go on at, InvalidInput for too many.
        """
        push = self._find(push_id)
        self._touch()
        push.append(offset, data)
        self._metrics.push_bytes.inc(len(data))
        return push.received

    async def commit(self, push_id: str, mode: SwapMode) -> Version:
        """Verifies and swaps; returns what serves now. On failure the push is gone and the old step serves.

        Raises UnknownName, PreconditionFailed for missing bytes or a step that moved, Damaged for
        bytes that aren't those of the digest.
        """
        push = self._find(push_id)
        push.committing = True
        self._stop_timer()
        outcome = "failed"
        try:
            version = await self._swap(push, mode)
            outcome = "committed"
            self._metrics.push_seconds.observe(time.monotonic() - push.begun)
            return version
        except Damaged:
            outcome = "damaged"
            raise
        except ServiceError:
            outcome = "refused"
            raise
        finally:
            self._close(outcome)

    def abort(self, push_id: str) -> Version:
        """Gives a push up; returns what serves. Raises UnknownName, Conflict while it commits."""
        self._find(push_id)
        self._close("aborted")
        return self._engine.version

    async def _swap(self, push: _Push, mode: SwapMode) -> Version:
        manifest = push.manifest
        if push.received < manifest.nbytes:
            text = f"only {push.received} of {manifest.nbytes} bytes have arrived; push again"
            raise PreconditionFailed("INCOMPLETE", push.id, text)
        self._check_steps(manifest)
        version = Version(manifest.run_id, manifest.new_step, manifest.weights_sha256)
        await self._engine.load(push.tensors(), version, mode)
        return version

    def _check_steps(self, manifest: Manifest) -> None:
        loaded = self._engine.version
        base, new = manifest.base_step, manifest.new_step
        if base != loaded.step:
            text = f"step {loaded.step} is loaded; the push builds on step {base}"
            raise PreconditionFailed("STEP", "base_step", text)
        if manifest.run_id == loaded.run_id and new <= loaded.step:
            text = (
                f"step {loaded.step} of run {loaded.run_id!r} is loaded; the new step is {new}, not above it"
            )
            raise PreconditionFailed("STEP", "new_step", text)

    def _find(self, push_id: str) -> _Push:
        push = self._push
        if push is None or not secrets.compare_digest(push.id.encode(), push_id.encode()):
            raise UnknownName("push", push_id)
        if push.committing:
            raise Conflict("the push is being committed")
        return push

    def _touch(self) -> None:
        self._stop_timer()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._idle_seconds, self._close, "expired")

    def _close(self, outcome: str) -> None:
        self._stop_timer()
        self._push = None
        self._metrics.pushes.labels(outcome).inc()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _check_form(manifest: Manifest) -> None:
    violations = []
    if not manifest.run_id:
        violations.append(Violation("manifest.run_id", "is empty; name the training run"))
    if not _SHA256.fullmatch(manifest.weights_sha256):
        text = "is no SHA-256 in lower-case hex; send the digest of the whole model after the swap"
        violations.append(Violation("manifest.weights_sha256", text))
    if violations:
        raise InvalidInput(violations)


def _view(buffer: bytearray, offset: int, spec: TensorSpec) -> Tensor:
    dtype = parse_dtype(spec.dtype)
    return torch.frombuffer(buffer, dtype=dtype, count=spec.count, offset=offset).reshape(spec.shape)
