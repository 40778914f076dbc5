"""The JSON of our own endpoints: the gRPC messages' fields under their own names, items flat.

Keys that don't exist are refused, so that a misspelt option isn't silently left out.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from plaudit.clients import ScoreOptions, Violation
from services.gateway.problems import FieldViolation, violation


class StrictModel(BaseModel):
    """A request, or part of one, that knows all its keys."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _knows_every_key(cls, value: Any) -> Any:  # noqa: ANN401
        unknown = [key for key in value if key not in cls.model_fields] if isinstance(value, dict) else []
        for key in unknown:
            close = get_close_matches(key, cls.model_fields, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(cls.model_fields)}"
            field = key.encode("utf-8", "replace").decode()  # JSON can hold what UTF-8 can't
            raise PydanticCustomError("unknown_key", "no such key; {hint}", {"field": field, "hint": hint})
        return value


class Message(StrictModel):
    """One turn of a conversation."""

    role: str = Field(examples=["user"])
    content: str = Field(examples=["How was the film?"])


class Options(StrictModel):
    """How items are scored."""

    model: str = Field("", description="A name of GET /v1/models; the first of them if left out.")
    truncation: Literal["error", "left", "right"] = Field(
        "error",
        description="What becomes of an item that is too long: an error, or its first or last tokens go.",
    )
    priority: Literal["low", "normal", "high"] = Field(
        "normal", description="Share of a busy model: a quarter, the normal one, or four times that."
    )
    include_components: bool = Field(
        False,
        description="Also give every member of an ensemble, or every attribute of a model with several.",
    )

    deterministic: bool = Field(
        False, description="Batches of their own: the same request to the same weights gives the same bits."
    )

    def options(self) -> ScoreOptions:
        """As the client takes them."""
        return ScoreOptions(
            model=self.model,
            truncation=self.truncation,
            priority=self.priority,
            include_components=self.include_components,
            deterministic=self.deterministic,
        )


class Pair(StrictModel):
    """A prompt and a response to it."""

    prompt: str = Field(examples=["The film was"])
    response: str = Field(examples=[" a joy."])


class Conversation(StrictModel):
    """A conversation whose last turn is scored, rendered with the model's own template."""

    messages: list[Message]


class Ids(StrictModel):
    """Prompt and response as ids of the model's vocabulary; the request then needs tokenizer_sha256."""

    token_ids: list[int]


def _form(item: Any) -> str | None:  # noqa: ANN401
    """Tag of the form that an item has; None if it has no key of any."""
    forms = {"prompt": "<pair>", "response": "<pair>", "messages": "<chat>", "token_ids": "<ids>"}
    return next((forms[key] for key in forms if key in item), None) if isinstance(item, dict) else None


@dataclass(frozen=True)
class Malformed:
    """Stands for an item that isn't one: its neighbours are scored all the same."""

    violations: tuple[Violation, ...]
    """Their fields' paths begin in the item; "" for all of it."""

    def at(self, item: str) -> tuple[Violation, ...]:
        """The violations, with the item's own path such as "items[3]"."""
        return tuple(
            Violation(f"{item}.{each.field}" if each.field else item, each.description)
            for each in self.violations
        )


def _or_malformed(value: Any, read: ValidatorFunctionWrapHandler) -> Any:  # noqa: ANN401
    try:
        return read(value)
    except ValidationError as error:
        found = [each | {"loc": ("item", *each["loc"])} for each in error.errors(include_url=False)]
        return Malformed(tuple(violation(each, "") for each in found))


Item = Annotated[
    Annotated[Pair, Tag("<pair>")] | Annotated[Conversation, Tag("<chat>")] | Annotated[Ids, Tag("<ids>")],
    Discriminator(
        _form,
        custom_error_type="item",
        custom_error_message="is no item; give prompt and response, or messages, or token_ids",
    ),
]


class ScoreRequest(Options):
    """Items to score."""

    items: list[Annotated[Item, WrapValidator(_or_malformed)]]
    all_or_nothing: bool = Field(False, description="Refuse the whole request if one item is bad.")
    tokenizer_sha256: str = Field("", description="Digest of the tokenizer that made the token_ids.")


class Prompted(Options):
    """Something that answers one prompt: text, or the turns so far."""

    prompt: str | None = Field(None, examples=["The film was"])
    messages: list[Message] | None = Field(None, description="A conversation, instead of prompt.")

    @model_validator(mode="after")
    def _one_of_them(self) -> "Prompted":
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError("prompt", "give either prompt or messages", {"field": "prompt"})
        return self


class RankRequest(Prompted):
    """Responses to one prompt, to be put in order."""

    candidates: list[str] = Field(examples=[[" a joy.", " a bore."]])
    top_n: int | None = Field(None, description="Give only so many of the best; all if left out.")
    all_or_nothing: bool = Field(False, description="Refuse the whole request if one candidate is bad.")


class CompareRequest(Prompted):
    """Two responses to one prompt."""

    first: str = Field(examples=[" a joy."])
    second: str = Field(examples=[" a bore."])
    temperature: float | None = Field(
        None, description="Divides the difference of raw rewards; the model's own if left out."
    )


class ModelVersion(BaseModel):
    """The exact model behind an answer."""

    model_id: str
    run_id: str = Field(description="Training run whose weights are loaded; empty for weights from disk.")
    step: int = Field(description="Pushes since the run began; 0 for weights from disk.")
    weights_sha256: str
    tokenizer_sha256: str


class Timing(BaseModel):
    """Where the time went in the reward service, of the item that was done last."""

    tokenize_seconds: float
    queue_seconds: float
    compute_seconds: float


class Component(BaseModel):
    """An ensemble's member, or an attribute of a model with several, in a score."""

    name: str
    raw_reward: float
    reward: float


class Reward(BaseModel):
    """A score."""

    reward: float = Field(description="(raw_reward − mean) / deviation of the model: what PPO uses.")
    raw_reward: float = Field(description="The model's output as it is.")
    token_count: int = Field(description="Tokens that the model read.")
    truncated_tokens: int = Field(description="Tokens that were cut off.")
    truncation: Literal["left", "right"] | None = Field(description="The side they were cut off.")
    components: list[Component] | None = Field(None, description="Only if they were asked for.")


class ItemError(BaseModel):
    """Why an item has no score, while its neighbours have theirs."""

    code: str = Field(description="Name of the gRPC status code.", examples=["INVALID_ARGUMENT"])
    message: str
    violations: list[FieldViolation]


class Failure(BaseModel):
    """What stands in the place of a score that there is none of."""

    error: ItemError


class Answer(BaseModel):
    """What every answer of a model carries."""

    model: ModelVersion
    timing: Timing


class ScoreResponse(Answer):
    """One result per item, in the order of the items."""

    results: list[Reward | Failure]


class Ranked(Reward):
    """A candidate in the order."""

    index: int = Field(description="Its place in the request, from 0.")
    rank: int = Field(description="1 for the best; equals share a rank.")


class Unranked(Failure):
    """A candidate without a score."""

    index: int = Field(description="Its place in the request, from 0.")


class RankResponse(Answer):
    """Candidates, best first."""

    ranked: list[Ranked]
    unranked: list[Unranked] = Field(description="Those that have no score, in the request's order.")


class CompareResponse(Answer):
    """Which of two responses is preferred."""

    probability: float = Field(description="That people prefer the first (Bradley and Terry 1952).")
    temperature: float = Field(description="The one that was used.")
    first: Reward
    second: Reward


class Queue(BaseModel):
    """What waits or is being scored now."""

    items: int
    tokens: int


class Model(BaseModel):
    """A model of the server; id and object as OpenAI's clients know them."""

    id: str = Field(description="The name to ask for it by.")
    object: Literal["model"] = "model"
    version: ModelVersion
    queue: Queue


class ModelList(BaseModel):
    """The models, the default first."""

    object: Literal["list"] = "list"
    data: list[Model]
