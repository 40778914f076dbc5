"""Our own endpoints, each one call of the reward service."""

from fastapi import APIRouter

from services.gateway import convert, schemas
from services.gateway.asking import PROBLEMS, RewardService, naming

router = APIRouter(prefix="/v1", tags=["Plaudit"], responses=PROBLEMS)


@router.post("/score")
async def score(request: schemas.ScoreRequest, reward: RewardService) -> schemas.ScoreResponse:
    """Scores items. A bad item has an error in its place; with `all_or_nothing` the request fails instead."""
    with naming(convert.SCORE_PATHS):
        scores = await reward.score(
            convert.items(request),
            all_or_nothing=request.all_or_nothing,
            tokenizer_sha256=request.tokenizer_sha256,
            **request.options(),
        )
    return convert.score_response(scores)


@router.post("/rank")
async def rank(request: schemas.RankRequest, reward: RewardService) -> schemas.RankResponse:
    """Orders the responses to one prompt, best first."""
    with naming(convert.PROMPT_PATHS):
        ranking = await reward.rank(
            convert.prompt(request),
            request.candidates,
            top_n=request.top_n,
            all_or_nothing=request.all_or_nothing,
            **request.options(),
        )
    return convert.rank_response(ranking)


@router.post("/compare")
async def compare(request: schemas.CompareRequest, reward: RewardService) -> schemas.CompareResponse:
    """How probably people prefer one response to another."""
    with naming(convert.PROMPT_PATHS):
        comparison = await reward.compare(
            convert.prompt(request),
            request.first,
            request.second,
            temperature=request.temperature,
            **request.options(),
        )
    return convert.compare_response(comparison)


@router.get("/models")
async def models(reward: RewardService) -> schemas.ModelList:
    """The models of the server, the default first."""
    with naming(convert.SCORE_PATHS):
        return convert.model_list(await reward.list_models())
