"""vLLM's `/score` and `/pooling`, as far as a reward model can answer them.

Source: vllm 0.32, `vllm/entrypoints/pooling/{scoring,pooling,base}/protocol.py`. A key that would change
the numbers there and has no counterpart here is refused; others are passed over.
"""

import time
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from plaudit import clients
from plaudit.clients import ScoreOptions
from services.gateway.asking import PROBLEMS, RewardService, score_all
from services.gateway.foreign import Foreign, OneOrMany, many, sigmoid
from services.gateway.paths import OPTIONS, Paths
from services.gateway.problems import ProblemError
from services.rpc import logs

router = APIRouter(tags=["vLLM"], responses=PROBLEMS)

FIRST = ("text_1", "queries", "data_1")
SECOND = ("text_2", "documents", "items", "data_2")
MESSAGE_PATHS = Paths(OPTIONS, (r"^items\[0\]\.chat\.", ""), (r"^items(\[0\])?(\.chat)?$", "messages"))


class PoolingBase(Foreign):
    """What both requests have."""

    use_activation: bool | None = Field(None, description="false: the output as it is, not its sigmoid.")
    truncate_prompt_tokens: Literal[-1] | None = Field(None, description="-1 cuts at the model's length.")
    truncation_side: Literal["left", "right"] | None = None
    chat_template: None = None
    chat_template_kwargs: None = None

    def options(self) -> ScoreOptions:
        """As the client takes them."""
        cut = self.truncate_prompt_tokens is not None
        return ScoreOptions(
            model=self.model, truncation=(self.truncation_side or "right") if cut else "error"
        )

    def score(self, reward: clients.Reward) -> float:
        """Of one item."""
        return reward.raw_reward if self.use_activation is False else sigmoid(reward.raw_reward)


class VllmScoreRequest(PoolingBase):
    """Pairs of texts: one with one, one with each of several, or each with its counterpart."""

    text_1: OneOrMany = Field(description=f"Or, as in vLLM, under one of the names {', '.join(FIRST[1:])}.")
    text_2: OneOrMany = Field(description=f"Or, as in vLLM, under one of the names {', '.join(SECOND[1:])}.")
    max_tokens_per_query: Literal[0] = 0
    max_tokens_per_doc: Literal[0] = 0
    instruction: None = None
    _keys: tuple[str, str] = ("text_1", "text_2")

    @model_validator(mode="wrap")
    @classmethod
    def _by_any_name(cls, value: Any, validate: Any) -> "VllmScoreRequest":  # noqa: ANN401
        """Remembers the names, for the paths of errors."""
        if not isinstance(value, dict):
            return validate(value)  # type: ignore[no-any-return]
        first = next((key for key in FIRST if key in value), "text_1")
        second = next((key for key in SECOND if key in value), "text_2")
        request: VllmScoreRequest = validate(
            {**value, "text_1": value.get(first), "text_2": value.get(second)}
        )
        request._keys = (first, second)
        return request

    def pairs(self) -> list[tuple[str, str]]:
        """(first, second) for every score. Raises ProblemError where the numbers don't fit."""
        ones, twos = many(self.text_1), many(self.text_2)
        if len(ones) == 1:
            ones *= len(twos)
        if len(ones) != len(twos):
            counts = f"{len(twos)} for {len(ones)} of {self._keys[0]}"
            raise ProblemError.at(self._keys[1], f"{counts}; send one of each, one and several, or as many")
        return list(zip(ones, twos, strict=True))

    def paths(self) -> Paths:
        """Names the body's own fields."""
        first, second = self._keys
        place = first + (r"[\1]" if len(many(self.text_1)) > 1 else "")
        index = r"[\1]" if isinstance(self.text_2, list) else ""
        return Paths(
            OPTIONS,
            (r"^items\[(\d+)\]\.pair\.prompt", place),
            (r"^items\[(\d+)\](\.pair(\.response)?)?", second + index),
            (r"^items$", second),
        )


class Usage(BaseModel):
    """Tokens that the model read."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: Literal[0] = 0


class VllmScoreData(BaseModel):
    """The score of one pair."""

    index: int
    object: Literal["score"] = "score"
    score: float


class Response(BaseModel):
    """What both responses have."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    usage: Usage


class VllmScoreResponse(Response):
    """One score per pair."""

    data: list[VllmScoreData]


class ChatMessage(BaseModel):
    """One turn, its content as text."""

    role: str
    content: str


class PoolingRequest(PoolingBase):
    """A conversation whose last turn is judged."""

    messages: list[ChatMessage]
    task: Literal["classify"] | None = None
    encoding_format: Literal["float"] = "float"
    add_generation_prompt: Literal[False] = False
    continue_final_message: Literal[False] = False

    @model_validator(mode="before")
    @classmethod
    def _no_input(cls, value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, dict) and "input" in value:
            hint = "has no prompt that it answers; send messages, or use /v1/score"
            raise PydanticCustomError("input", hint, {"field": "input"})
        return value


class PoolingData(BaseModel):
    """The outputs for one conversation: one number."""

    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float]


class PoolingResponse(Response):
    """One conversation's."""

    data: list[PoolingData]


@router.post("/score")
async def score(request: VllmScoreRequest, reward: RewardService) -> VllmScoreResponse:
    """Scores the second text as a response to the first. One that can't be scored fails the request."""
    found, scores = await score_all(reward, request.pairs(), request.paths(), **request.options())
    data = [VllmScoreData(index=index, score=request.score(each)) for index, each in enumerate(found)]
    return VllmScoreResponse(data=data, **_frame("score", scores, found))


@router.post("/pooling")
async def pooling(request: PoolingRequest, reward: RewardService) -> PoolingResponse:
    """Scores the last turn of a conversation, as vLLM's task "classify" does for a model with one output."""
    chat = clients.Chat([(message.role, message.content) for message in request.messages])
    found, scores = await score_all(reward, [chat], MESSAGE_PATHS, **request.options())
    data = [PoolingData(index=0, data=[request.score(found[0])])]
    return PoolingResponse(data=data, **_frame("pool", scores, found))


def _frame(prefix: str, scores: clients.Scores, rewards: list[clients.Reward]) -> dict[str, Any]:
    tokens = sum(each.token_count for each in rewards)
    return {
        "id": f"{prefix}-{logs.request_id.get()}",
        "created": int(time.time()),
        "model": scores.model.model_id,
        "usage": Usage(prompt_tokens=tokens, total_tokens=tokens),
    }
