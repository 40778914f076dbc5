"""Between the reward service's messages and its own words: the only place that knows both."""

from collections.abc import Sequence

from plaudit.v1 import reward_pb2, types_pb2
from services.batching import CallLimits
from services.errors import InvalidInput, PreconditionFailed
from services.reward.dataplane import Outcome
from services.reward.items import Chat, Ids, Item, ModelFacts, Pair, Score
from services.rpc import convert


def items(
    request: reward_pb2.ScoreRequest, facts: ModelFacts, limits: CallLimits
) -> list[Item | InvalidInput]:
    """The request's items. Raises InvalidInput, PreconditionFailed for faults of the call."""
    if not request.items:
        raise InvalidInput.at("items", "is empty; send at least one item")
    if len(request.items) > limits.max_items:
        raise InvalidInput.at(
            "items", f"holds {len(request.items)} items, a call at most {limits.max_items}; split it"
        )
    _check_tokenizer(request, facts)
    _check_id_count(request, limits)
    return [_item(item, f"items[{index}]") for index, item in enumerate(request.items)]


def score_response(outcomes: Sequence[Outcome], facts: ModelFacts) -> reward_pb2.ScoreResponse:
    """One result per item."""
    return reward_pb2.ScoreResponse(results=map(_result, outcomes), model=model_version(facts))


def get_model_response(facts: ModelFacts, limits: CallLimits) -> reward_pb2.GetModelResponse:
    """All there is to know about the model."""
    return reward_pb2.GetModelResponse(
        model=model_version(facts),
        dtype=convert.data_type(facts.dtype),
        vocabulary_size=facts.vocabulary_size,
        context_length=facts.context_length,
        reward_mean=facts.reward_mean,
        reward_std=facts.reward_std,
        has_chat_template=facts.has_chat_template,
        limits=convert.call_limits(limits),
    )


def model_version(facts: ModelFacts) -> types_pb2.ModelVersion:
    """A reward model is always as it was on disk: no run, step 0."""
    return types_pb2.ModelVersion(
        model_id=facts.model_id,
        weights_sha256=facts.weights_sha256,
        tokenizer_sha256=facts.tokenizer_sha256,
    )


def _item(item: reward_pb2.ScoreItem, field: str) -> Item | InvalidInput:
    match item.WhichOneof("input"):
        case "pair":
            return Pair(item.pair.prompt, item.pair.response)
        case "chat":
            return Chat(tuple((message.role, message.content) for message in item.chat.messages))
        case "token_ids":
            return Ids(list(item.token_ids.ids))
        case _:
            return InvalidInput.at(field, "has no input; set pair, chat or token_ids")


def _result(outcome: Outcome) -> reward_pb2.ScoreResult:
    if not isinstance(outcome, Score):
        return reward_pb2.ScoreResult(error=convert.item_error(outcome))
    reward = reward_pb2.Reward(
        raw_reward=outcome.raw_reward, reward=outcome.reward, token_count=outcome.token_count
    )
    return reward_pb2.ScoreResult(reward=reward)


def _check_tokenizer(request: reward_pb2.ScoreRequest, facts: ModelFacts) -> None:
    if request.tokenizer_sha256:
        if request.tokenizer_sha256 != facts.tokenizer_sha256:
            raise PreconditionFailed(
                "TOKENIZER",
                "tokenizer_sha256",
                f"the ids come from tokenizer {request.tokenizer_sha256[:12]}…, this model reads "
                f"{facts.tokenizer_sha256[:12]}…; send text instead",
            )
    elif any(item.WhichOneof("input") == "token_ids" for item in request.items):
        raise InvalidInput.at("tokenizer_sha256", "is needed with token_ids; GetModel tells the model's")


def _check_id_count(request: reward_pb2.ScoreRequest, limits: CallLimits) -> None:
    """Before the ids are copied: the sum over text items is only known when they are tokenised."""
    count = sum(len(item.token_ids.ids) for item in request.items)
    if count > limits.max_tokens:
        raise InvalidInput.at("items", f"hold {count} ids, a call at most {limits.max_tokens}; split it")
