"""The reward service's own words: no torch, no gRPC, no protos."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Pair:
    """Prompt and response as text."""

    prompt: str
    response: str


@dataclass(frozen=True, slots=True)
class Chat:
    """(role, content) turns, the last of which is scored."""

    messages: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Ids:
    """Prompt and response as ids of the model's vocabulary."""

    ids: list[int]


Item = Pair | Chat | Ids


@dataclass(frozen=True, slots=True)
class Encoded:
    """An item as the model reads it, without padding.

    In arrays: tens of thousands may wait, and as Python's integers they'd take nine times the memory.
    """

    ids: "array[int]"
    type_ids: "array[int] | None" = None
    """Token types of a text pair, for the models that have them."""
    truncated_tokens: int = 0
    """Tokens that were cut off."""
    truncation: Literal["left", "right"] | None = None
    """The side they were cut off; None if nothing was."""

    @property
    def key(self) -> tuple[bytes, bytes]:
        """Equal for what the model reads alike."""
        return self.ids.tobytes(), self.type_ids.tobytes() if self.type_ids else b""


def packed(ids: Iterable[int]) -> "array[int]":
    """Ids, or token types, as an Encoded has them."""
    return array("i", ids)


@dataclass(frozen=True, slots=True)
class Component:
    """The part of one ensemble member, or of one attribute, in a score."""

    name: str
    raw_reward: float
    reward: float
    """As it enters the combination."""


@dataclass(frozen=True, slots=True)
class Score:
    """What the model says of one item."""

    raw_reward: float
    reward: float
    """(raw_reward − mean) / std of the model."""
    token_count: int
    truncated_tokens: int = 0
    truncation: Literal["left", "right"] | None = None
    components: tuple[Component, ...] = ()
    """Members of an ensemble or attributes of a model with several; none for a plain model."""


@dataclass(frozen=True)
class ModelFacts:
    """What there is to know about the loaded reward model."""

    model_id: str
    weights_sha256: str
    tokenizer_sha256: str
    dtype: str
    vocabulary_size: int
    context_length: int
    reward_mean: float
    reward_std: float
    has_chat_template: bool
    placement: str
    """Where it runs and why, in words."""
    attributes: tuple[str, ...] = ("reward",)
    """Names of the model's H outputs."""


class ScoreNotFinite(Exception):
    """The model's output is no number; a reward that could not be had is never made up."""


class Engine(Protocol):
    """What scores: synchronous, used by one thread at a time."""

    facts: ModelFacts
    token_budget: int
    """Padded tokens that a batch should have at most."""

    def encode(self, item: Item, field: str, truncation: str = "error") -> Encoded:
        """Ids the model reads, 1 to context_length of them.

        `truncation` is what happens to more: "error", or the side that is cut off, "left" or "right".
        Raises InputError with paths below `field`.
        """
        ...

    def score(self, batch: list[Encoded]) -> list[tuple[float, ...]]:
        """The H raw outputs of each item of one batch, in the order of `facts.attributes`."""
        ...
