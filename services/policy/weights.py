"""Pushes of weights on their way in: announced, received in chunks, verified, handed to the engine.

States: open (`begin`, `append`) → committing (`commit`) → committed or failed. `abort`, silence for too
long, or a push that takes its place give it up before, with the old weights serving. One run drives: that
of the open push, else that of the weights that serve.
Knows bytes and tensors, neither gRPC nor protos; all methods belong to one event loop.
"""

import asyncio
import logging
import re
import secrets
import time
from collections import deque
from collections.abc import Iterator
from functools import partial

from services.errors import (
    Conflict,
    Damaged,
    InvalidInput,
    NotServing,
    PreconditionFailed,
    ServiceError,
    UnknownName,
    Violation,
)
from services.policy.interface import Engine, Manifest, PushState, SwapMode, Version
from services.policy.metrics import PolicyMetrics
from services.policy.push import Push

IDLE_SECONDS = 120.0
"""A push that nobody has touched for so long is given up, so that a dead trainer locks nobody out."""
REMEMBERED = 8
"""Pushes that have ended and still tell how."""
LONGEST_RUN_ID = 200
"""Characters: it stands in every answer, in metrics and in messages."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OUTCOMES = {PreconditionFailed: "refused", Conflict: "refused", NotServing: "refused", Damaged: "damaged"}
"""What the metrics call a commit that failed so; "failed" if anything else did."""

log = logging.getLogger(__name__)


class Pushes:
    """At most one push at a time, and what became of the last few."""

    def __init__(self, engine: Engine, metrics: PolicyMetrics, idle_seconds: float = IDLE_SECONDS) -> None:
        self._engine = engine
        self._metrics = metrics
        self._idle_seconds = idle_seconds
        self._push: Push | None = None
        self._ended: deque[Push] = deque(maxlen=REMEMBERED)
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, manifest: Manifest, take_over: bool = False) -> Push:
        """Opens a push; the one that is open if `manifest` is the same, and else in its place.

        Raises InvalidInput for a manifest that makes no sense, PreconditionFailed for one of a run that
        doesn't drive, unless it takes over, or that doesn't fit the loaded weights, and Conflict while
        another push is being committed.
        """
        _check_form(manifest)
        if self._push is None or self._push.manifest != manifest:
            self._check_driver(manifest, take_over)
            self._check_steps(manifest)
            self._engine.check_tensors(manifest.tensors)
            self._void_open(manifest)
            self._push = Push(manifest)
        self._touch(self._push)
        return self._push

    def append(self, push_id: str, offset: int, data: bytes) -> int:
        """Takes the next bytes; returns how many there are now.

        Raises UnknownName, PreconditionFailed with the offset to go on at, InvalidInput for too many,
        Conflict while the push is being committed; of a push that has ended, how it did.
        """
        push = self.find(push_id)
        if push.state is PushState.COMMITTING:
            raise Conflict("the push is being committed")
        if push.state is not PushState.OPEN:
            raise _committed(push)
        self._touch(push)
        push.append(offset, data)
        self._metrics.push_bytes.inc(len(data))
        return push.received

    async def commit(self, push_id: str, mode: SwapMode) -> Version:
        """Verifies and swaps; returns what serves then. On failure the push is over and the old step serves.

        Goes on when its caller is cancelled; called again, it waits for the same commit and gives the
        same outcome. Raises UnknownName, PreconditionFailed for missing bytes or a step that moved,
        Damaged for bytes that aren't those of the digest.
        """
        push = self.find(push_id)
        if push.state is PushState.OPEN:
            self._stop_timer()
            push.state = PushState.COMMITTING
            push.committing = asyncio.create_task(self._swap(push, mode))
            push.committing.add_done_callback(partial(self._end_commit, push))
        if push.committing is not None:
            await asyncio.wait([push.committing])
        return push.result

    async def load(
        self, manifest: Manifest, chunks: Iterator[bytes], mode: SwapMode, take_over: bool
    ) -> Version:
        """A whole push, of bytes that are at hand; `chunks` are taken in a thread.

        Raises what begin, commit and `chunks` raise; on failure the old step serves.
        """
        push = self.begin(manifest, take_over)
        if push.received or push.state is PushState.COMMITTING:
            raise Conflict(f"step {manifest.new_step} of run {manifest.run_id!r} is being pushed in chunks")
        try:
            while chunk := await asyncio.to_thread(next, chunks, b""):
                self.append(push.id, push.received, chunk)
        except BaseException:
            if push.state is PushState.OPEN:
                self._give_up(push, "aborted", "the push was aborted")
            raise
        return await self.commit(push.id, mode)

    async def abort(self, push_id: str) -> Version:
        """Gives a push up, unless it is committed or has ended otherwise; returns what serves.

        Raises UnknownName, PreconditionFailed if it is committed.
        """
        push = self.find(push_id)
        if push.committing is not None:
            await self._cancel(push.committing)
        elif push.state is PushState.OPEN:
            self._give_up(push, "aborted", "the push was aborted")
        if push.state is PushState.COMMITTED:
            raise _committed(push)
        return self._engine.version

    def find(self, push_id: str) -> Push:
        """The push of that name, also if it has ended. Raises UnknownName."""
        for push in self._known():
            if secrets.compare_digest(push.id.encode(), push_id.encode()):
                return push
        raise UnknownName("push", push_id, fix="begin one")

    def newest(self, run_id: str, new_step: int) -> Push:
        """The last push of a step, also if it has ended. Raises UnknownName."""
        for push in self._known():
            if (push.manifest.run_id, push.manifest.new_step) == (run_id, new_step):
                return push
        raise UnknownName("push", f"{run_id}, step {new_step}")

    async def close(self) -> None:
        """Ends a commit that goes on without its caller."""
        self._stop_timer()
        if self._push is not None and self._push.committing is not None:
            await self._cancel(self._push.committing)

    def _known(self) -> Iterator[Push]:
        if self._push is not None:
            yield self._push
        yield from self._ended

    async def _swap(self, push: Push, mode: SwapMode) -> None:
        if push.received < push.total:
            text = f"data: only {push.received} of {push.total} bytes have arrived; push again"
            raise PreconditionFailed("INCOMPLETE", push.id, text)
        self._check_steps(push.manifest)
        await self._engine.load(push.tensors(), push.version, mode)

    def _end_commit(self, push: Push, task: "asyncio.Task[None]") -> None:
        """Ends `push` as its commit has ended."""
        error = None if task.cancelled() else task.exception()
        if self._engine.version == push.version:  # also if it was cancelled when it had begun to swap
            self._metrics.push_seconds.observe(time.monotonic() - push.begun)
            self._end(push, "committed", PushState.COMMITTED, push.version)
        elif not isinstance(error, Exception):
            self._give_up(push, "aborted", "the push was aborted while it was being committed")
        else:
            if not isinstance(error, ServiceError):
                log.error("step %d can't be loaded", push.version.step, exc_info=error)
            self._end(push, _OUTCOMES.get(type(error), "failed"), PushState.FAILED, error)

    def _check_driver(self, manifest: Manifest, take_over: bool) -> None:
        driver = self._push.version if self._push else self._engine.version
        if driver.run_id != manifest.run_id:
            if driver.run_id and not take_over:
                text = f"run {driver.run_id!r} drives this policy, with step {driver.step}"
                fix = "give each run servers of its own, or take this one over (take_over)"
                raise PreconditionFailed("DRIVER", driver.run_id, f"{text}; {fix}")
        elif self._push and manifest.new_step < driver.step:
            text = f"step {driver.step} of run {driver.run_id!r} is being pushed"
            raise _wrong_step("new_step", f"{text}; step {manifest.new_step} is stale")

    def _check_steps(self, manifest: Manifest) -> None:
        loaded = self._engine.version
        base, new = manifest.base_step, manifest.new_step
        if base != loaded.step:
            text = f"step {loaded.step} is loaded; the push builds on step {base}; build on the loaded one"
            raise _wrong_step("base_step", text)
        if manifest.run_id == loaded.run_id and new <= loaded.step:
            text = f"step {loaded.step} of run {loaded.run_id!r} is loaded"
            raise _wrong_step("new_step", f"{text}; the new step is {new}, not above it; push a later one")

    def _void_open(self, manifest: Manifest) -> None:
        """Gives the open push up, if there is one, for that of `manifest`."""
        old = self._push
        if old is None:
            return
        if old.state is PushState.COMMITTING:
            raise Conflict(f"step {old.version.step} of run {old.version.run_id!r} is being committed")
        text = f"run {manifest.run_id!r} drives this policy now and pushes step {manifest.new_step}"
        error = PreconditionFailed("DRIVER", manifest.run_id, f"{text}; this push is void")
        self._end(old, "superseded", PushState.GIVEN_UP, error)

    def _touch(self, push: Push) -> None:
        if push.state is PushState.OPEN:
            self._stop_timer()
            push.expires = time.monotonic() + self._idle_seconds
            text = f"nobody touched the push for {self._idle_seconds:g} s"
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._idle_seconds, self._give_up, push, "expired", text)

    def _give_up(self, push: Push, outcome: str, text: str) -> None:
        error = PreconditionFailed("ENDED", push.id, f"{text}; begin again")
        self._end(push, outcome, PushState.GIVEN_UP, error)

    def _end(self, push: Push, outcome: str, state: PushState, result: Version | Exception) -> None:
        self._stop_timer()
        push.end(state, result)
        self._push = None
        self._ended.appendleft(push)
        self._metrics.pushes.labels(outcome).inc()

    async def _cancel(self, committing: "asyncio.Task[None]") -> None:
        """Once only: a second time would stop the engine from putting in what it has begun to."""
        if not committing.cancelling():
            committing.cancel()
        await asyncio.wait([committing])

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _wrong_step(field: str, text: str) -> PreconditionFailed:
    return PreconditionFailed.at("STEP", f"manifest.{field}", text)


def _committed(push: Push) -> PreconditionFailed:
    """For what can't be done to a push that is committed. Raises what it ended with if it isn't."""
    return PreconditionFailed("ENDED", push.id, f"step {push.result.step} of this push is committed")


def _check_form(manifest: Manifest) -> None:
    violations = []
    if not 0 < len(manifest.run_id) <= LONGEST_RUN_ID:
        text = f"has {len(manifest.run_id)} characters; name the training run in 1 to {LONGEST_RUN_ID}"
        violations.append(Violation("manifest.run_id", text))
    if not _SHA256.fullmatch(manifest.weights_sha256):
        text = "is no SHA-256 in lower-case hex; send the digest of the whole model after the swap"
        violations.append(Violation("manifest.weights_sha256", text))
    if violations:
        raise InvalidInput(violations)
