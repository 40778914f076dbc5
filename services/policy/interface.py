"""What a policy engine is: requests in, responses out, weights changed in between. Plain data, no torch."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from services.errors import PreconditionFailed

if TYPE_CHECKING:
    from torch import Tensor

ITEM_BYTES: Mapping[str, int] = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of an element, by type name."""


@dataclass(frozen=True)
class ModelFacts:
    """What there is to know about the loaded policy, whatever its weights."""

    model_id: str
    tokenizer_sha256: str
    chat_template_sha256: str
    """Empty without a chat template."""
    dtype: str
    vocabulary_size: int
    context_length: int
    eos_token_ids: tuple[int, ...]
    placement: str
    """Where it runs and why, in words."""


@dataclass(frozen=True)
class Version:
    """Which weights."""

    run_id: str
    """Training run they come from; empty for weights loaded from disk."""
    step: int
    weights_sha256: str


class SwapMode(Enum):
    """When new weights may replace the old ones."""

    IN_PLACE = "in_place"
    """Between two decode steps: caches are computed again and responses go on."""
    DRAIN = "drain"
    """When the requests that have begun are done; new ones wait."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a push, before its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.count * ITEM_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Manifest:
    """What a push of weights announces."""

    run_id: str
    base_step: int
    """Step that must be loaded."""
    new_step: int
    tensors: tuple[TensorSpec, ...]
    """Those that change, in the order their bytes come."""
    weights_sha256: str
    """Digest of the whole model after the swap."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.nbytes for spec in self.tensors)


class PushState(Enum):
    """Where a push of weights stands."""

    OPEN = "open"
    COMMITTING = "committing"
    COMMITTED = "committed"
    FAILED = "failed"
    """Its commit didn't succeed."""
    GIVEN_UP = "given_up"
    """Aborted, expired, or voided by another push."""


@dataclass(frozen=True)
class GenerationRequest:
    """A batch of prompts, checked and in token ids."""

    prompts: tuple[tuple[int, ...], ...]
    seeds: tuple[int, ...]
    """One per prompt."""
    max_new_tokens: int
    samples_per_prompt: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop_token_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    deterministic: bool = False
    """Never share a batch with another request, so that its bits depend on itself only."""
    step_at_least: int | None = None
    step_exactly: int | None = None
    deadline: float | None = None
    """A `time.monotonic()` after which nobody wants the result."""
    size: int = 0
    """Bytes of the message it came in."""

    @property
    def sequences(self) -> int:
        """Responses asked for."""
        return len(self.prompts) * self.samples_per_prompt

    @cached_property
    def tokens(self) -> int:
        """Tokens of all prompts and responses, at most."""
        return sum(len(ids) + self.max_new_tokens for ids in self.prompts) * self.samples_per_prompt

    @property
    def sampling(self) -> tuple[float, int, float]:
        """What requests that share a batch must have in common."""
        return self.temperature, self.top_k, self.top_p

    def check_step(self, loaded: int) -> None:
        """Raises PreconditionFailed if weights of step `loaded` may not answer."""
        if self.step_exactly is not None and loaded != self.step_exactly:
            wanted = f"exactly step {self.step_exactly}"
            raise PreconditionFailed("STEP", "step_exactly", f"step {loaded} is loaded, not {wanted}")
        if self.step_at_least is not None and loaded < self.step_at_least:
            wanted = f"step {self.step_at_least} or later"
            raise PreconditionFailed("STEP", "step_at_least", f"step {loaded} is loaded, not {wanted}")


@dataclass(frozen=True)
class Generated:
    """One finished response."""

    prompt_index: int
    sample_index: int
    token_ids: Sequence[int]
    text: str
    finish: str
    """"eos", "stop_token", "stop_string" or "length"."""
    logprobs: Sequence[float]
    """Of the distribution each token was drawn from."""
    logprobs_temperature_1: Sequence[float]
    """Over the whole vocabulary at temperature 1."""
    version_spans: Sequence[tuple[int, int, int]]
    """(step, start, end) stretches that cover the response."""
    seed: int


class Generation:
    """A request on its way: iterate it once, for the responses as they end.

    Iteration raises what the request failed with. All methods belong to one event loop.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.left = request.sequences
        """Responses that haven't ended."""
        self.done = False
        """Complete, failed or cancelled: nothing more will come."""
        self.version: Version | None = None
        """The weights that were loaded when the last response ended."""
        self._items: asyncio.Queue[Generated | Exception | None] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Generated]:
        """Responses in the order they end."""
        while (item := await self._items.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    async def all(self) -> list[Generated]:
        """Every response, ordered by prompt index, then sample index."""
        return sorted([item async for item in self], key=lambda item: (item.prompt_index, item.sample_index))

    def deliver(self, response: Generated, version: Version) -> bool:
        """For engines: hands one response over; returns whether it was the last."""
        self._items.put_nowait(response)
        self.left -= 1
        self.version = version
        if not self.left:
            self.end()
        return self.done

    def end(self, error: Exception | None = None) -> None:
        """For engines: nothing more will come, because of `error` if there is one."""
        if not self.done:
            self.done = True
            self._items.put_nowait(error)


class Engine(Protocol):
    """Something that generates, and takes new weights while it does."""

    facts: ModelFacts

    @property
    def version(self) -> Version:
        """The weights that are loaded."""
        ...

    def encode_text(self, text: str, field: str) -> list[int]:
        """Ids of plain text. Raises lm.errors.InputError under the name `field`."""
        ...

    def encode_chat(self, messages: Sequence[tuple[str, str]], field: str) -> list[int]:
        """Ids of (role, content) turns and a generation prompt. Raises lm.errors.InputError."""
        ...

    def submit(self, request: GenerationRequest) -> Generation:
        """Queues a request. Raises PreconditionFailed, Overloaded, NotServing."""
        ...

    def cancel(self, generation: Generation) -> None:
        """Gives a request up: nothing of it runs after the decode step in progress."""
        ...

    def pause(self) -> None:
        """Stops between two decode steps; requests wait, weights may change."""
        ...

    def resume(self) -> None:
        """Ends a pause."""
        ...

    def check_tensors(self, specs: Sequence[TensorSpec]) -> None:
        """Raises PreconditionFailed naming the tensors that don't fit the model."""
        ...

    async def load(self, tensors: Iterable[tuple[str, "Tensor"]], version: Version, mode: SwapMode) -> None:
        """Replaces those tensors, all or none, and voids every cache; the others stay.

        Returns when the new weights serve. Cancelled before that, the old ones stay. Raises
        PreconditionFailed, Damaged if the digest of the result isn't the version's, Conflict, NotServing.
        """
        ...
