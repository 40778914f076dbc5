"""From plain values to the services' messages; from_proto.py is the way back.

Raises InvalidArgument, naming the field, for values that protobuf can't hold; whether they make sense is
for the service to say.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeVar, cast

from google.protobuf.message import Message

from plaudit.clients import data
from plaudit.clients.errors import InvalidArgument
from plaudit.clients.from_proto import DTYPES, SWAP_MODES
from plaudit.v1 import policy_pb2, reference_pb2, reward_pb2, types_pb2, weights_pb2

CHUNK_BYTES = 512 * 1024
"""Bytes of weights a message; 256 KiB to 1 MiB stream fastest."""

ValueT = TypeVar("ValueT")
ValueT_contra = TypeVar("ValueT_contra", contravariant=True)


def generate_request(
    prompts: Sequence[data.Prompt],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    samples_per_prompt: int = 1,
    stop_token_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    deterministic: bool = False,
    step_at_least: int | None = None,
    step_exactly: int | None = None,
) -> policy_pb2.GenerateRequest:
    """The arguments are those of data.GenerateOptions.

    Every prompt gets a seed, drawn here if none is given: the call may then be sent again.
    """
    _refuse_str("prompts", prompts)
    _refuse_str("stop_strings", stop_strings)
    if seeds is None:
        seeds = [secrets.randbits(64) for _ in prompts]
    if len(seeds) != len(prompts):
        raise InvalidArgument.at("seeds", f"{len(seeds)} for {len(prompts)} prompts; give one each, or none")
    if step_at_least is not None and step_exactly is not None:
        raise InvalidArgument.at("step_exactly", "give this or step_at_least, not both")
    request = policy_pb2.GenerateRequest()
    _set(request, "", samples_per_prompt=samples_per_prompt, deterministic=deterministic)
    _set(request, "", step_at_least=step_at_least, step_exactly=step_exactly)
    sampling = request.sampling
    _set(
        sampling,
        "sampling.",
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    _extend(sampling.stop_token_ids, "sampling.stop_token_ids", stop_token_ids)
    _extend(sampling.stop_strings, "sampling.stop_strings", stop_strings)
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        message = request.prompts.add()
        _set(message, f"prompts[{index}].", seed=seed)
        _fill_prompt(message, f"prompts[{index}].", prompt)
    return request


def logprobs_request(
    sequences: Sequence[data.TokenIds], starts: Sequence[int], temperature: float
) -> reference_pb2.ComputeLogprobsRequest:
    """`sequences` and `starts` are aligned."""
    if len(sequences) != len(starts):
        raise InvalidArgument.at("starts", f"{len(starts)} for {len(sequences)} sequences; give one each")
    request = reference_pb2.ComputeLogprobsRequest()
    _set(request, "", temperature=temperature)
    for index, (ids, start) in enumerate(zip(sequences, starts, strict=True)):
        message = request.sequences.add()
        _extend(message.token_ids, f"sequences[{index}].token_ids", ids)
        _set(message, f"sequences[{index}].", start=start)
    return request


def score_request(
    items: Sequence[data.Scorable], all_or_nothing: bool, tokenizer_sha256: str
) -> reward_pb2.ScoreRequest:
    """A tuple of two str is a pair; anything else that isn't a Chat is taken for ids."""
    request = reward_pb2.ScoreRequest(all_or_nothing=all_or_nothing, tokenizer_sha256=tokenizer_sha256)
    _refuse_str("items", items)
    for index, item in enumerate(items):
        _fill_item(request.items.add(), f"items[{index}].", item)
    return request


def begin_push_request(manifest: data.PushManifest) -> weights_pb2.BeginPushRequest:
    """Encoding FULL, the only one there is."""
    request = weights_pb2.BeginPushRequest()
    message = request.manifest
    message.encoding = weights_pb2.PUSH_ENCODING_FULL
    _set(message, "manifest.", base_step=manifest.base_step, new_step=manifest.new_step)
    _set(message, "manifest.", run_id=manifest.run_id, weights_sha256=manifest.weights_sha256)
    for index, tensor in enumerate(manifest.tensors):
        path = f"manifest.tensors[{index}]."
        spec = message.tensors.add()
        _set(spec, path, name=tensor.name, dtype=_number(DTYPES, f"{path}dtype", tensor.dtype))
        _extend(spec.shape, f"{path}shape", tensor.shape)
    return request


def chunk_requests(
    push_id: str, pieces: Iterable[bytes | memoryview], size: int = CHUNK_BYTES
) -> Iterator[weights_pb2.PushChunksRequest]:
    """Cuts and joins `pieces` into messages of `size` bytes each, the last one shorter."""
    offset, buffer = 0, bytearray()
    for piece in pieces:
        rest = memoryview(piece).cast("B")
        while rest.nbytes:
            taken = rest[: size - len(buffer)]
            buffer += taken
            rest = rest[taken.nbytes :]
            if len(buffer) == size:
                yield weights_pb2.PushChunksRequest(push_id=push_id, offset=offset, data=bytes(buffer))
                offset += size
                buffer.clear()
    if buffer:
        yield weights_pb2.PushChunksRequest(push_id=push_id, offset=offset, data=bytes(buffer))


def commit_request(push_id: str, mode: data.SwapMode) -> weights_pb2.CommitPushRequest:
    """`mode` by its name."""
    number = _number(SWAP_MODES, "mode", mode)
    request = weights_pb2.CommitPushRequest(push_id=push_id)
    _set(request, "", mode=number)
    return request


def _fill_prompt(message: policy_pb2.Prompt, path: str, prompt: data.Prompt) -> None:
    if isinstance(prompt, str):
        _set(message, path, text=prompt)
    elif isinstance(prompt, data.Chat):
        _fill_chat(message.chat, f"{path}chat.", prompt)
    else:
        message.token_ids.SetInParent()  # an empty list is still the form that was chosen
        _extend(message.token_ids.ids, f"{path}token_ids.ids", prompt)


def _fill_item(message: reward_pb2.ScoreItem, path: str, item: object) -> None:
    match item:
        case str():
            raise InvalidArgument.at(path[:-1], "one str; write (prompt, response)")
        case data.Chat():
            _fill_chat(message.chat, f"{path}chat.", item)
        case [str() as prompt, response]:
            _set(message.pair, f"{path}pair.", prompt=prompt, response=response)
        case _:
            message.token_ids.SetInParent()
            _extend(message.token_ids.ids, f"{path}token_ids.ids", cast(data.TokenIds, item))


def _fill_chat(message: types_pb2.Chat, path: str, chat: data.Chat) -> None:
    message.SetInParent()
    for index, turn in enumerate(chat.messages):
        where = f"{path}messages[{index}]"
        try:
            role, content = (turn["role"], turn["content"]) if isinstance(turn, Mapping) else turn
        except (KeyError, TypeError, ValueError):
            raise InvalidArgument.at(where, "write (role, content) or {'role': …, 'content': …}") from None
        _set(message.messages.add(), f"{where}.", role=role, content=content)


def _set(message: Message, path: str, **fields: object) -> None:
    """Sets the fields that aren't None."""
    for name, value in fields.items():
        if value is not None:
            _hold(f"{path}{name}", partial(setattr, message, name), value)


class _Repeated(Protocol[ValueT_contra]):
    def extend(self, values: Iterable[ValueT_contra], /) -> None: ...
    def append(self, value: ValueT_contra, /) -> None: ...


def _extend(field: _Repeated[ValueT], path: str, values: Iterable[ValueT]) -> None:
    try:
        field.extend(values)
    except (TypeError, ValueError):  # protobuf doesn't say which one it was
        for index, value in enumerate(values if isinstance(values, Iterable) else ()):
            _hold(f"{path}[{index}]", field.append, value)
        _hold(path, field.extend, values)


def _hold(path: str, put: Callable[[ValueT], object], value: ValueT) -> None:
    try:
        put(value)
    except (TypeError, ValueError) as error:
        raise InvalidArgument.at(path, f"{value!r} can't be sent: {error}") from None


def _number(names: Mapping[int, str], path: str, name: str) -> int:
    for number, known in names.items():
        if known == name:
            return number
    raise InvalidArgument.at(path, f"{name!r} is none of {', '.join(names.values())}")


def _refuse_str(path: str, values: object) -> None:
    if isinstance(values, str):
        raise InvalidArgument.at(path, "a list, not one str; put it in brackets")
