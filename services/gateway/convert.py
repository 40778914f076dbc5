"""Between our JSON and the client's plain values: the only place that knows both."""

from collections.abc import Sequence
from dataclasses import asdict

from plaudit import clients
from plaudit.clients import ItemFailure, Scorable
from services.gateway import problems, schemas
from services.gateway.paths import OPTIONS, Paths

SCORE_PATHS = Paths(
    OPTIONS, (r"^(items\[\d+\])\.(?:pair\b|chat(?=\.))", r"\1"), (r"\.token_ids\.ids\b", ".token_ids")
)
PROMPT_PATHS = Paths(OPTIONS, (r"^text$", "prompt"), (r"^chat\.", ""), (r"^chat$", "messages"))


def items(request: schemas.ScoreRequest) -> list[Scorable | ItemFailure]:
    """The request's items as the client takes them."""
    return [_item(item, f"items[{index}]") for index, item in enumerate(request.items)]


def chat(messages: Sequence[schemas.Message]) -> clients.Chat:
    """A conversation."""
    return clients.Chat([(message.role, message.content) for message in messages])


def prompt(request: schemas.Prompted) -> str | clients.Chat:
    """Whichever of the two forms it has."""
    return chat(request.messages) if request.messages is not None else request.prompt or ""


def score_response(scores: clients.Scores) -> schemas.ScoreResponse:
    """One result per item."""
    results = [
        failure(result, SCORE_PATHS) if isinstance(result, ItemFailure) else reward(result)
        for result in scores
    ]
    return schemas.ScoreResponse(results=results, model=model(scores.model), timing=timing(scores.timing))


def rank_response(ranking: clients.Ranking) -> schemas.RankResponse:
    """Best first."""
    return schemas.RankResponse(
        ranked=[
            schemas.Ranked(index=each.index, rank=each.rank, **reward(each.reward).model_dump())
            for each in ranking.ranked
        ],
        unranked=[
            schemas.Unranked(index=each.index, error=failure(each.failure, PROMPT_PATHS).error)
            for each in ranking.unranked
        ],
        model=model(ranking.model),
        timing=timing(ranking.timing),
    )


def compare_response(comparison: clients.Comparison) -> schemas.CompareResponse:
    """Probability, and both scores."""
    return schemas.CompareResponse(
        probability=comparison.probability,
        temperature=comparison.temperature,
        first=reward(comparison.first),
        second=reward(comparison.second),
        model=model(comparison.model),
        timing=timing(comparison.timing),
    )


def model_list(models: Sequence[clients.ListedModel]) -> schemas.ModelList:
    """The models of a server."""
    return schemas.ModelList(
        data=[
            schemas.Model(
                id=each.name,
                version=model(each.model),
                queue=schemas.Queue(items=each.queue.items, tokens=each.queue.tokens),
            )
            for each in models
        ]
    )


def reward(result: clients.Reward) -> schemas.Reward:
    """A score."""
    components = [schemas.Component(**asdict(each)) for each in result.components]
    return schemas.Reward(
        reward=result.reward,
        raw_reward=result.raw_reward,
        token_count=result.token_count,
        truncated_tokens=result.truncated_tokens,
        truncation=result.truncation,
        components=components or None,
    )


def failure(found: ItemFailure, paths: Paths) -> schemas.Failure:
    """Why there is no score, said of the body's fields."""
    violations = [
        problems.FieldViolation(field=each.field, description=each.description)
        for each in paths.violations(found.violations)
    ]
    message = problems.item_message(found, paths)
    return schemas.Failure(error=schemas.ItemError(code=found.code, message=message, violations=violations))


def model(version: clients.ModelVersion) -> schemas.ModelVersion:
    """Which model answered."""
    return schemas.ModelVersion(**asdict(version))


def timing(spent: clients.Timing) -> schemas.Timing:
    """Where the time went."""
    return schemas.Timing(**asdict(spent))


def _item(item: schemas.Item | schemas.Malformed, path: str) -> Scorable | ItemFailure:
    match item:
        case schemas.Malformed():
            return ItemFailure("INVALID_ARGUMENT", f"{path} is malformed", item.at(path))
        case schemas.Pair():
            return (item.prompt, item.response)
        case schemas.Conversation():
            return chat(item.messages)
        case schemas.Ids():
            return item.token_ids
