"""From plain values to the reward service's messages; to_proto.py has the other services'."""

from collections.abc import Mapping, Sequence
from typing import cast

from plaudit.clients import data
from plaudit.clients.data_reward import Priority, Truncation
from plaudit.clients.errors import InvalidArgument, ItemFailure
from plaudit.clients.fields import enum_number, extend, fill_chat, refuse_str, set_fields, set_given
from plaudit.clients.from_proto import PRIORITIES, TRUNCATIONS
from plaudit.clients.unsendable import Unsendable
from plaudit.v1 import reward_pb2


def score_options(
    *,
    model: str = "",
    truncation: Truncation = "error",
    priority: Priority = "normal",
    include_components: bool = False,
    deterministic: bool = False,
) -> reward_pb2.ScoreOptions:
    """The arguments are those of data_reward.ScoreOptions."""
    options = reward_pb2.ScoreOptions()
    set_fields(
        options,
        "options.",
        model=model,
        include_components=include_components,
        deterministic=deterministic,
    )
    set_fields(
        options,
        "options.",
        truncation=enum_number(TRUNCATIONS, "options.truncation", truncation),
        priority=enum_number(PRIORITIES, "options.priority", priority),
    )
    return options


def score_request(
    items: Sequence[data.Scorable | ItemFailure],
    all_or_nothing: bool,
    tokenizer_sha256: str,
    options: reward_pb2.ScoreOptions,
) -> tuple[reward_pb2.ScoreRequest, Unsendable]:
    """A tuple of two str is a pair; anything else that isn't a Chat is taken for ids.

    Raises InvalidArgument for faults of the call; an item's fault is among the second.
    """
    request = reward_pb2.ScoreRequest(options=options)
    set_fields(request, "", all_or_nothing=all_or_nothing, tokenizer_sha256=tokenizer_sha256)
    refuse_str("items", items)
    unsendable = Unsendable()
    for index, item in enumerate(items):
        message = request.items.add()
        if isinstance(item, ItemFailure):
            unsendable.add(index, item)
            continue
        try:
            _fill_item(message, f"items[{index}]", item)
        except InvalidArgument as error:
            message.Clear()
            unsendable.add(index, error.of_one_item())
    return request, unsendable


def score_stream_request(
    tokenizer_sha256: str, options: reward_pb2.ScoreOptions
) -> reward_pb2.ScoreStreamRequest:
    """What counts for all items of a stream."""
    request = reward_pb2.ScoreStreamRequest(options=options)
    set_fields(request, "", tokenizer_sha256=tokenizer_sha256)
    return request


def stream_item(item_id: str, item: data.Scorable) -> reward_pb2.StreamItem:
    """Field paths begin at the StreamItem, such as "item.pair.response", as those of the service do."""
    message = reward_pb2.StreamItem(item_id=item_id)
    _fill_item(message.item, "item", item)
    return message


def rank_request(
    prompt: str | data.Chat,
    candidates: Sequence[str],
    top_n: int | None,
    all_or_nothing: bool,
    options: reward_pb2.ScoreOptions,
) -> reward_pb2.RankRequest:
    """`top_n` None for all."""
    request = reward_pb2.RankRequest(options=options)
    set_fields(request, "", all_or_nothing=all_or_nothing)
    _fill_prompt(request, prompt)
    refuse_str("candidates", candidates)
    extend(request.candidates, "candidates", candidates)
    set_given(request, "", top_n=top_n)
    return request


def compare_request(
    prompt: str | data.Chat,
    first: str,
    second: str,
    temperature: float | None,
    options: reward_pb2.ScoreOptions,
) -> reward_pb2.CompareRequest:
    """`temperature` None for the model's own."""
    request = reward_pb2.CompareRequest(options=options)
    _fill_prompt(request, prompt)
    set_fields(request, "", first=first, second=second)
    set_given(request, "", temperature=temperature)
    return request


def get_model_request(name: str) -> reward_pb2.GetModelRequest:
    """`name` "" for the first model of the server."""
    request = reward_pb2.GetModelRequest()
    set_fields(request, "", name=name)
    return request


def _fill_prompt(request: reward_pb2.RankRequest | reward_pb2.CompareRequest, prompt: object) -> None:
    match prompt:
        case str():
            set_fields(request, "", text=prompt)
        case data.Chat():
            fill_chat(request.chat, "chat.", prompt)
        case _:
            raise InvalidArgument.at("prompt", f"a {type(prompt).__name__}; give a str or a Chat")


def _fill_item(message: reward_pb2.ScoreItem, path: str, item: object) -> None:
    match item:
        case str():
            raise InvalidArgument.at(path, "one str; write (prompt, response)")
        case data.Chat():
            fill_chat(message.chat, f"{path}.chat.", item)
        case [str() as prompt, response]:
            set_fields(message.pair, f"{path}.pair.", prompt=prompt, response=response)
        case Mapping() | [str(), *_] | [_, str()]:
            raise InvalidArgument.at(path, "is neither (prompt, response), two str, nor a Chat nor token ids")
        case _:
            message.token_ids.SetInParent()
            extend(message.token_ids.ids, f"{path}.token_ids.ids", cast(data.TokenIds, item))
