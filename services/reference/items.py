"""The reference service's own words: no torch, no gRPC, no protos."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Item:
    """A sequence of ids whose tokens from `start` on are asked for."""

    ids: list[int]
    start: int
    """1 <= start < len(ids)."""
    temperature: float


@dataclass(frozen=True)
class ModelFacts:
    """What there is to know about the loaded reference model."""

    model_id: str
    weights_sha256: str
    tokenizer_sha256: str
    dtype: str
    vocabulary_size: int
    context_length: int
    placement: str
    """Where it runs and why, in words."""


class Engine(Protocol):
    """What computes: synchronous, used by one thread at a time."""

    facts: ModelFacts
    token_budget: int
    """Padded tokens that a batch should have at most."""

    def logprobs(self, items: list[Item]) -> list[list[float]]:
        """Per item one log-probability for each token from its start on. One temperature a batch."""
        ...
