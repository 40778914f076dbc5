"""From the reward service's requests to its own words; answers.py is the way back."""

import math
from collections.abc import Iterable, Sequence

from plaudit.v1 import reward_pb2, types_pb2
from services.batching import CallLimits
from services.errors import InvalidInput, PreconditionFailed
from services.reward.interface import Options
from services.reward.items import Chat, Ids, Item, ModelFacts, Pair
from services.rpc.quotas import charge

TRUNCATIONS = {
    reward_pb2.TRUNCATION_UNSPECIFIED: "error",
    reward_pb2.TRUNCATION_ERROR: "error",
    reward_pb2.TRUNCATION_LEFT: "left",
    reward_pb2.TRUNCATION_RIGHT: "right",
}
WEIGHTS = {
    reward_pb2.PRIORITY_UNSPECIFIED: 1.0,
    reward_pb2.PRIORITY_LOW: 0.25,
    reward_pb2.PRIORITY_NORMAL: 1.0,
    reward_pb2.PRIORITY_HIGH: 4.0,
}


def options(message: reward_pb2.ScoreOptions, caller: str, deadline: float | None, size: int) -> Options:
    """How to score what came in `size` bytes. Raises InvalidInput."""
    for name, value, known in (
        ("truncation", message.truncation, TRUNCATIONS),
        ("priority", message.priority, WEIGHTS),
    ):
        if value not in known:
            raise InvalidInput.at(f"options.{name}", f"is {value}; use 0 to {max(known)}")
    return Options(
        truncation=TRUNCATIONS[message.truncation],
        caller=caller,
        weight=WEIGHTS[message.priority],
        deadline=deadline,
        deterministic=message.deterministic,
        charge=charge,
        size=size,
    )


def items(
    request: reward_pb2.ScoreRequest, facts: ModelFacts, limits: CallLimits
) -> list[Item | InvalidInput]:
    """The request's items. Raises InvalidInput, PreconditionFailed for faults of the call."""
    check_count(len(request.items), "items", limits)
    check_tokenizer(request.tokenizer_sha256, request.items, facts)
    _check_id_count(request.items, limits)
    return [item(one, f"items[{index}]") for index, one in enumerate(request.items)]


def stream_items(
    request: reward_pb2.ScoreStreamRequest, tokenizer_sha256: str, facts: ModelFacts, limits: CallLimits
) -> list[Item | InvalidInput]:
    """The items of one message of a stream. Raises as `items`."""
    messages = [one.item for one in request.items]
    if messages:
        check_count(len(messages), "items", limits)
    check_tokenizer(tokenizer_sha256, messages, facts)
    _check_id_count(messages, limits)
    return [item(one, "item") for one in messages]


def rank_items(request: reward_pb2.RankRequest, limits: CallLimits) -> list[Item]:
    """One item per candidate. Raises InvalidInput."""
    check_count(len(request.candidates), "candidates", limits)
    if request.HasField("top_n") and request.top_n < 1:
        raise InvalidInput.at("top_n", "is 0; use 1 or more, or leave it out for all")
    prompt = len(request.text) + sum(len(turn.content) for turn in request.chat.messages)
    size = sum(prompt + len(candidate) for candidate in request.candidates)
    if size > limits.max_bytes:
        text = f"hold {size} characters, each with the prompt, a call at most {limits.max_bytes}; split it"
        raise InvalidInput.at("candidates", text)
    return _responses(request, request.candidates)


def compare_items(request: reward_pb2.CompareRequest) -> list[Item]:
    """Two items. Raises InvalidInput."""
    return _responses(request, (request.first, request.second))


def temperature(request: reward_pb2.CompareRequest, own: float) -> float:
    """The temperature to compare with. Raises InvalidInput."""
    asked = request.temperature if request.HasField("temperature") else own
    if not (math.isfinite(asked) and asked > 0):
        raise InvalidInput.at("temperature", f"is {asked:g}; use a number above 0")
    return asked


def item(message: reward_pb2.ScoreItem, field: str) -> Item | InvalidInput:
    """One item, or what is wrong with it."""
    match message.WhichOneof("input"):
        case "pair":
            return Pair(message.pair.prompt, message.pair.response)
        case "chat":
            return _chat(message.chat)
        case "token_ids":
            return Ids(list(message.token_ids.ids))
        case _:
            return InvalidInput.at(field, "has no input; set pair, chat or token_ids")


def check_count(count: int, field: str, limits: CallLimits) -> None:
    """Raises InvalidInput for none, and for more than a call may carry."""
    if not count:
        raise InvalidInput.at(field, "is empty; send at least one item")
    if count > limits.max_items:
        raise InvalidInput.at(field, f"holds {count} items, a call at most {limits.max_items}; split it")


def check_tokenizer(
    tokenizer_sha256: str, messages: Iterable[reward_pb2.ScoreItem], facts: ModelFacts
) -> None:
    """Raises InvalidInput, PreconditionFailed where token ids aren't, or can't be, the model's."""
    has_ids = any(message.WhichOneof("input") == "token_ids" for message in messages)
    if has_ids and not facts.tokenizer_sha256:
        raise PreconditionFailed(
            "TOKENIZER", "token_ids", "the ensemble's members read different vocabularies; send text instead"
        )
    if tokenizer_sha256 and facts.tokenizer_sha256 and tokenizer_sha256 != facts.tokenizer_sha256:
        raise PreconditionFailed(
            "TOKENIZER",
            "tokenizer_sha256",
            f"the ids come from tokenizer {tokenizer_sha256[:12]}…, this model reads "
            f"{facts.tokenizer_sha256[:12]}…; send text instead",
        )
    if has_ids and not tokenizer_sha256:
        raise InvalidInput.at("tokenizer_sha256", "is needed with token_ids; say which tokenizer made them")


def _responses(
    request: reward_pb2.RankRequest | reward_pb2.CompareRequest, responses: Sequence[str]
) -> list[Item]:
    match request.WhichOneof("prompt"):
        case "text":
            return [Pair(request.text, response) for response in responses]
        case "chat":
            turns = _chat(request.chat).messages
            return [Chat((*turns, ("assistant", response))) for response in responses]
        case _:
            raise InvalidInput.at("prompt", "is missing; set text or chat")


def _chat(message: types_pb2.Chat) -> Chat:
    return Chat(tuple((turn.role, turn.content) for turn in message.messages))


def _check_id_count(messages: Iterable[reward_pb2.ScoreItem], limits: CallLimits) -> None:
    """Before the ids are copied: the sum over text items is only known when they are tokenised."""
    count = sum(len(message.token_ids.ids) for message in messages)
    if count > limits.max_tokens:
        raise InvalidInput.at("items", f"hold {count} ids, a call at most {limits.max_tokens}; split it")
