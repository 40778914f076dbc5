"""The reward service's own words: no torch, no gRPC, no protos."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Pair:
    """Prompt and response as text."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Chat:
    """(role, content) turns, the last of which is scored."""

    messages: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Ids:
    """Prompt and response as ids of the model's vocabulary."""

    ids: list[int]


Item = Pair | Chat | Ids


@dataclass(frozen=True)
class Score:
    """What the model says of one item."""

    raw_reward: float
    reward: float
    """(raw_reward − mean) / std of the model."""
    token_count: int


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


class ScoreNotFinite(Exception):
    """The model's output is no number; a reward that could not be had is never made up."""


class Engine(Protocol):
    """What scores: synchronous, used by one thread at a time."""

    facts: ModelFacts
    token_budget: int
    """Padded tokens that a batch should have at most."""

    def encode(self, item: Item, field: str) -> list[int]:
        """Ids the model reads, 1 to context_length of them. Raises InputError with paths below `field`."""
        ...

    def score(self, sequences: list[list[int]]) -> list[float]:
        """Raw scores of one batch."""
        ...
