"""The reward service's own words: no torch, no gRPC, no protos."""

from array import array
from collections.abc import Hashable, Sequence
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
_ID_BYTES = array("i").itemsize


@dataclass(frozen=True, slots=True)
class Encoded:
    """An item as the model reads it, without padding.

    Packed: thousands may wait, and as Python's integers they'd take nine times the memory.
    """

    packed_ids: bytes
    packed_type_ids: bytes | None = None
    truncated_tokens: int = 0
    """Tokens that were cut off."""
    truncation: Literal["left", "right"] | None = None
    """The side they were cut off; None if nothing was."""

    @classmethod
    def of(cls, ids: Sequence[int], type_ids: Sequence[int] | None = None) -> "Encoded":
        """Of these ids."""
        return cls(_packed(ids), None if type_ids is None else _packed(type_ids))

    def __len__(self) -> int:
        """How many ids there are."""
        return len(self.packed_ids) // _ID_BYTES

    @property
    def ids(self) -> "array[int]":
        """Ids of the model's vocabulary."""
        return array("i", self.packed_ids)

    @property
    def type_ids(self) -> "array[int] | None":
        """Token types of a text pair, for the models that have them."""
        return None if self.packed_type_ids is None else array("i", self.packed_type_ids)

    @property
    def key(self) -> Hashable:
        """Equal for what the model reads alike."""
        return self.packed_ids if self.packed_type_ids is None else (self.packed_ids, self.packed_type_ids)


def _packed(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()


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
