"""Our own engine: lm.generation's decode loop, fed from a queue.

Everything is decided on the event loop, between two decode steps; torch runs in the compute thread
only. Requests that wait together and draw alike share a batch; a deterministic one runs alone.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from lm.generation import DecodeBatch, Sampling
from lm.tokenizer import decode, encode_chat, encode_text
from services.batching import CallLimits
from services.compute import ComputeThread
from services.errors import Conflict, NotServing, PreconditionFailed, TooLate
from services.policy.interface import Generation, GenerationRequest, SwapMode, TensorSpec, Version
from services.policy.metrics import PolicyMetrics
from services.policy.model import ServedModel
from services.policy.model_weights import Prepared
from services.policy.queue import RequestQueue
from services.policy.rows import BatchLimits, Row, cut, rows_of


@dataclass
class _Swap:
    """New weights that wait for their moment."""

    prepared: Prepared
    version: Version
    mode: SwapMode
    done: "asyncio.Future[None]"
    begun: bool = False


class TorchEngine:
    """An interface.Engine over transformers. All methods belong to one event loop."""

    def __init__(
        self,
        model: ServedModel,
        thread: ComputeThread,
        metrics: PolicyMetrics,
        call_limits: CallLimits,
        batch_limits: BatchLimits | None = None,
        on_version: Callable[[Version], None] = lambda version: None,
    ) -> None:
        """Starts to serve, in a task of the running loop. `on_version` hears of every new version."""
        self.facts = model.facts
        self.queue = RequestQueue(call_limits)
        self.version = Version("", 0, model.weights.sha256)
        self._model = model
        self._thread = thread
        self._metrics = metrics
        self._batch_limits = batch_limits or BatchLimits()
        self._on_version = on_version
        self._running: list[Generation] = []
        self._swap: _Swap | None = None
        self._loading = False
        self._paused = False
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._serve())

    def encode_text(self, text: str, field: str) -> list[int]:
        """Ids of plain text. Raises InputError."""
        return encode_text(self._model.loaded.tokenizer, text, field)

    def encode_chat(self, messages: Sequence[tuple[str, str]], field: str) -> list[int]:
        """Ids of a conversation and a generation prompt. Raises InputError."""
        return encode_chat(self._model.loaded.tokenizer, messages, add_generation_prompt=True, field=field)

    def submit(self, request: GenerationRequest) -> Generation:
        """Queues a request. Raises PreconditionFailed, Overloaded, NotServing."""
        if self._task.done():
            raise NotServing("the server is shutting down")
        request.check_step(self.version.step)
        generation = Generation(request)
        self.queue.admit(generation)
        self._changed.set()
        return generation

    def cancel(self, generation: Generation) -> None:
        """Gives a request up: nothing of it runs after the decode step in progress."""
        self._end(generation)

    def pause(self) -> None:
        """Stops between two decode steps; requests wait, weights may change."""
        self._paused = True

    def resume(self) -> None:
        """Ends a pause."""
        self._paused = False
        self._changed.set()

    def check_tensors(self, specs: Sequence[TensorSpec]) -> None:
        """Raises PreconditionFailed naming the tensors that don't fit the model."""
        self._model.weights.check(specs)

    async def load(self, tensors: Iterable[tuple[str, Tensor]], version: Version, mode: SwapMode) -> None:
        """Replaces weights: checked off the event loop while the old ones serve, then swapped."""
        if self._loading:
            raise Conflict("other weights are being loaded")
        self._loading = True
        try:
            prepared = await asyncio.to_thread(self._model.weights.prepare, tensors, version.weights_sha256)
            done = asyncio.get_running_loop().create_future()
            await self._wait_for(_Swap(prepared, version, mode, done))
        finally:
            self._loading = False

    async def close(self) -> None:
        """Ends everything that waits or runs with NotServing."""
        unfinished = [*self._running, *self.queue.generations]
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for generation in unfinished:
            self._end(generation, NotServing("the server is shutting down"))
        if self._swap is not None:
            self._swap.done.set_exception(NotServing("the server is shutting down"))
            self._swap = None

    async def _serve(self) -> None:
        while True:
            if self._swap is not None:
                await self._apply_swap(None)
            elif len(self.queue) and not self._paused:
                await self._run_next()
            else:
                await self._wait_for_change()

    async def _run_next(self) -> None:
        """Runs the oldest request and those that may share its batches, to their ends."""
        taken = self.queue.take(self._batch_limits.rows)
        for waiting in taken:
            self._metrics.queue_wait.observe(time.monotonic() - waiting.since)
        self._running = [waiting.generation for waiting in taken]
        sampling = Sampling(*self._running[0].request.sampling)
        rows = [row for generation in self._running for row in rows_of(generation)]
        try:
            for batch_rows in cut(rows, self._batch_limits):
                await self._run_batch(DecodeBatch(self._model.loaded, sampling, batch_rows))
        except Exception as error:  # whatever torch raises ends these requests, not the engine
            for generation in self._running:
                self._end(generation, error)
        self._running = []

    async def _run_batch(self, batch: DecodeBatch[Row]) -> None:
        self._metrics.count_prompts(row.prompt_ids for row in batch.responses)
        for row in batch.responses:
            row.note_step(self.version)
        while await self._between_steps(batch):
            rows = len(batch.responses)
            with self._metrics.step_seconds.time():
                ended = await self._thread.run(batch.step)
            self._metrics.batch_rows.observe(rows)
            self._metrics.tokens.inc(rows)
            for row in ended:
                self._deliver(row)

    async def _between_steps(self, batch: DecodeBatch[Row]) -> bool:
        """Drops rows nobody wants, lets weights change, waits a pause out; whether a row is left."""
        while True:
            self._end_overdue()
            unwanted = [row for row in batch.responses if row.owner.done]
            if unwanted:
                await self._thread.run(batch.drop, unwanted)
            if not batch.responses:
                return False
            if self._swap is not None and self._swap.mode is SwapMode.IN_PLACE:
                await self._apply_swap(batch)
            elif self._paused:
                await self._wait_for_change()
            else:
                return True

    async def _apply_swap(self, batch: DecodeBatch[Row] | None) -> None:
        """Puts the waiting weights in; responses in `batch` go on under them, from a new cache."""
        swap, self._swap = self._swap, None
        assert swap is not None
        swap.begun = True
        try:
            await self._thread.run(self._model.weights.apply, swap.prepared)
        except BaseException as error:  # the device failed, or the server shuts down
            swap.done.set_exception(NotServing(f"the weights could not be put in place: {error}"))
            raise
        self.version = swap.version
        if batch is not None:
            batch.void_cache()
            for row in batch.responses:
                row.note_step(self.version)
        self._end_unmet()
        self._on_version(self.version)
        swap.done.set_result(None)

    async def _wait_for(self, swap: _Swap) -> None:
        """Returns when `swap` was applied; a caller who gives up earlier takes it back."""
        self._swap = swap
        self._changed.set()
        try:
            await asyncio.shield(swap.done)
        except asyncio.CancelledError:
            if swap.begun:  # it ends in an instant: leave no state between two versions
                await asyncio.wait([swap.done])
            else:
                self._swap = None
            raise

    async def _wait_for_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _deliver(self, row: Row) -> None:
        if row.owner.done:
            return
        generated = row.generated(decode(self._model.loaded.tokenizer, row.token_ids))
        self._metrics.sequences.labels(generated.finish).inc()
        if row.owner.deliver(generated, self.version):
            self.queue.release(row.owner)

    def _end(self, generation: Generation, error: Exception | None = None) -> None:
        """Ends a request before it is complete."""
        if generation.done:
            return
        self._metrics.sequences.labels("dropped").inc(generation.left)
        generation.end(error)
        self.queue.release(generation, answered=False)
        self._changed.set()

    def _end_overdue(self) -> None:
        for generation in self._running:
            deadline = generation.request.deadline
            if deadline is not None and time.monotonic() >= deadline:
                self._end(generation, TooLate("the deadline passed"))

    def _end_unmet(self) -> None:
        """Ends requests that may not be answered, or not to the end, by the weights that are loaded now."""
        for generation in [*self._running, *self.queue.generations]:
            try:
                generation.request.check_step(self.version.step)
            except PreconditionFailed as error:
                self._end(generation, error)
