"""What requests of other systems' shapes share: their clients may send keys that mean nothing here."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag


class Foreign(BaseModel):
    """A request of somebody else's shape."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    model: Annotated[str, BeforeValidator(lambda name: "" if name is None else name)] = Field(
        "", description="A name of GET /v1/models; the first of them if left out."
    )


Truncation = Literal["error", "left", "right"]

OneOrMany = Annotated[
    Annotated[str, Tag("<one>")] | Annotated[list[str], Tag("<many>")],
    Discriminator(lambda value: "<many>" if isinstance(value, list) else "<one>"),
]
"""A text or several; each has errors of its own only."""


def many(texts: str | list[str]) -> list[str]:
    """Always a list."""
    return [texts] if isinstance(texts, str) else texts


def sigmoid(raw_reward: float) -> float:
    """1 / (1 + exp(−raw_reward)): what cross-encoder servers make of the one output of a model."""
    if raw_reward < 0:
        return math.exp(raw_reward) / (1 + math.exp(raw_reward))
    return 1 / (1 + math.exp(-raw_reward))


def has_key(key: str, value: Any) -> bool:  # noqa: ANN401
    """Whether a body that may be anything has `key`."""
    return isinstance(value, dict) and key in value
