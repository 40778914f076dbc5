"""OpenRLHF's remote reward model, as its trainer asks it (0.6 and later, `--reward.remote_url`).

Source: openrlhf 0.11.2, `openrlhf/utils/agent.py` (SingleTurnAgentExecutor) and `openrlhf/cli/serve_rm.py`.
The trainer sends `query`, prompt and response decoded together with their special tokens, and reads
`rewards`, `scores` and `extra_logs`, a list each with one number per query. What is scored, and the
answer, are as of the reward function in plaudit/adapters/openrlhf.py.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field, FiniteFloat

from plaudit.adapters.items import scorable
from plaudit.adapters.openrlhf import END_TOKENS
from plaudit.clients import Scorable
from services.gateway.asking import PROBLEMS, RewardService, naming, score_all
from services.gateway.foreign import Truncation
from services.gateway.paths import OPTIONS, Paths
from services.gateway.problems import ProblemError

router = APIRouter(tags=["OpenRLHF"], responses=PROBLEMS)

LABEL_PATHS = Paths((r"^(labels\[\d+\])\.prompt", r"\1"))


class GetRewardOptions(BaseModel):
    """What the trainer's configuration can say in the URL."""

    model: str = Field("", description="A name of GET /v1/models; the first of them if left out.")
    truncation: Truncation = Field("error", description="What becomes of texts that are too long.")
    end_token: list[str] = Field(
        list(END_TOKENS), description="Taken off the end of responses; the well-known ones if left out."
    )
    empty_reward: FiniteFloat | None = Field(
        None,
        description="Reward of a response without text, which no model is asked about; an error if left out.",
    )


class GetRewardRequest(BaseModel):
    """What the trainer sends."""

    query: list[str] = Field(
        description="Prompt and response as one text.", examples=[["The film was a joy."]]
    )
    prompts: list[str] = Field(description="The beginning of each query.", examples=[["The film was"]])
    labels: list[Any] = Field(
        [], description="A list of turns takes the prompt's place; anything else isn't looked at."
    )

    def turns(self, index: int) -> list[Any]:
        """Those that stand in a query's label; none if it is anything else."""
        label = self.labels[index] if index < len(self.labels) else None
        turns = label if isinstance(label, list) else []
        return turns if all(isinstance(turn, Mapping) for turn in turns) else []


class GetRewardResponse(BaseModel):
    """What the trainer reads, one number per query in each list."""

    rewards: list[float] = Field(description="Normalised.")
    scores: list[float] = Field(description="The rewards again, as OpenRLHF's own server gives them.")
    extra_logs: dict[str, list[float]] = Field(description="empty_response: 1 where there was no text.")


@router.post("/get_reward")
async def get_reward(
    request: GetRewardRequest, reward: RewardService, options: Annotated[GetRewardOptions, Query()]
) -> GetRewardResponse:
    """Scores what OpenRLHF's trainer has sampled. One that can't be scored fails the request."""
    responses = _responses(request, options.end_token)
    declared = options.empty_reward
    asked = [index for index, response in enumerate(responses) if response or declared is None]
    rewards = {} if declared is None else dict.fromkeys(range(len(responses)), declared)
    if asked or not responses:
        with naming(LABEL_PATHS):
            items = [_item(request, responses[index], index) for index in asked]
        paths = _paths(request, asked)
        found, _ = await score_all(reward, items, paths, model=options.model, truncation=options.truncation)
        rewards.update(zip(asked, (each.reward for each in found), strict=True))
    values = [rewards[index] for index in range(len(responses))]
    empty = [float(index not in asked) for index in range(len(responses))]
    return GetRewardResponse(rewards=values, scores=values, extra_logs={"empty_response": empty})


def _responses(request: GetRewardRequest, end_tokens: list[str]) -> list[str]:
    """The queries without their prompts. Raises ProblemError where one doesn't begin with its prompt."""
    if len(request.query) != len(request.prompts):
        count = len(request.query)
        raise ProblemError.at("prompts", f"{len(request.prompts)} for {count} queries; send one each")
    responses = []
    for index, (query, prompt) in enumerate(zip(request.query, request.prompts, strict=True)):
        if not query.startswith(prompt):
            why = "the tokenizer changes the text, or the prompt was cut to fit"
            raise ProblemError.at(f"query[{index}]", f"doesn't begin with prompts[{index}]: {why}")
        responses.append(_without_end(query[len(prompt) :], end_tokens))
    return responses


def _without_end(response: str, end_tokens: list[str]) -> str:
    while end := next((token for token in end_tokens if token and response.endswith(token)), ""):
        response = response.removesuffix(end)
    return response


def _item(request: GetRewardRequest, response: str, index: int) -> Scorable:
    return scorable(request.turns(index) or request.prompts[index], response, f"labels[{index}]")


def _paths(request: GetRewardRequest, asked: list[int]) -> Paths:
    """Of items that were made of the queries `asked`."""

    def turn(match: re.Match[str]) -> str:
        index, place = asked[int(match[1])], int(match[2])
        in_label = place < len(request.turns(index))
        return f"labels[{index}][{place}]{match[3]}" if in_label else f"query[{index}]"

    return Paths(
        OPTIONS,
        (r"^items\[(\d+)\]\.chat\.messages\[(\d+)\](.*)", turn),
        (r"^items\[(\d+)\]\.pair\.prompt", lambda match: f"prompts[{asked[int(match[1])]}]"),
        (r"^items\[(\d+)\].*", lambda match: f"query[{asked[int(match[1])]}]"),
        (r"^items$", "query"),
    )
