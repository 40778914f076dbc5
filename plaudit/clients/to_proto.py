"""From plain values to the services' messages; from_proto.py is the way back.

Raises InvalidArgument, naming the field, for values that protobuf can't hold; whether they make sense is
for the service to say. The reward service's messages are in to_proto_reward.py.
"""

import secrets
from collections.abc import Iterable, Iterator, Sequence

from plaudit.clients import data
from plaudit.clients.errors import InvalidArgument
from plaudit.clients.fields import enum_number, extend, fill_chat, refuse_str, set_fields, set_given
from plaudit.clients.from_proto import DTYPES, SWAP_MODES
from plaudit.v1 import policy_pb2, reference_pb2, weights_pb2

CHUNK_BYTES = 512 * 1024
"""Bytes of weights a message; 256 KiB to 1 MiB stream fastest."""


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
    refuse_str("prompts", prompts)
    refuse_str("stop_strings", stop_strings)
    if seeds is None:
        seeds = [secrets.randbits(64) for _ in prompts]
    if len(seeds) != len(prompts):
        raise InvalidArgument.at("seeds", f"{len(seeds)} for {len(prompts)} prompts; give one each, or none")
    if step_at_least is not None and step_exactly is not None:
        raise InvalidArgument.at("step_exactly", "give this or step_at_least, not both")
    request = policy_pb2.GenerateRequest()
    set_fields(request, "", samples_per_prompt=samples_per_prompt, deterministic=deterministic)
    set_given(request, "", step_at_least=step_at_least, step_exactly=step_exactly)
    sampling = request.sampling
    set_fields(
        sampling,
        "sampling.",
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    extend(sampling.stop_token_ids, "sampling.stop_token_ids", stop_token_ids)
    extend(sampling.stop_strings, "sampling.stop_strings", stop_strings)
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        message = request.prompts.add()
        set_fields(message, f"prompts[{index}].", seed=seed)
        _fill_prompt(message, f"prompts[{index}].", prompt)
    return request


def logprobs_request(
    sequences: Sequence[data.TokenIds], starts: Sequence[int], temperature: float
) -> reference_pb2.ComputeLogprobsRequest:
    """`sequences` and `starts` are aligned."""
    if len(sequences) != len(starts):
        raise InvalidArgument.at("starts", f"{len(starts)} for {len(sequences)} sequences; give one each")
    request = reference_pb2.ComputeLogprobsRequest()
    set_fields(request, "", temperature=temperature)
    for index, (ids, start) in enumerate(zip(sequences, starts, strict=True)):
        message = request.sequences.add()
        extend(message.token_ids, f"sequences[{index}].token_ids", ids)
        set_fields(message, f"sequences[{index}].", start=start)
    return request


def begin_push_request(manifest: data.PushManifest, take_over: bool) -> weights_pb2.BeginPushRequest:
    """Both as they are."""
    request = weights_pb2.BeginPushRequest()
    _fill_manifest(request.manifest, manifest)
    set_fields(request, "", take_over=take_over)
    return request


def load_request(
    uri: str, manifest: data.PushManifest, mode: data.SwapMode, take_over: bool
) -> weights_pb2.LoadFromUriRequest:
    """`mode` by its name."""
    request = weights_pb2.LoadFromUriRequest()
    _fill_manifest(request.manifest, manifest)
    number = enum_number(SWAP_MODES, "mode", mode)
    set_fields(request, "", uri=uri, mode=number, take_over=take_over)
    return request


def chunk_requests(
    push_id: str, pieces: Iterable[bytes | memoryview], size: int = CHUNK_BYTES, start: int = 0
) -> Iterator[weights_pb2.PushChunksRequest]:
    """Cuts and joins `pieces`, from byte `start` on, into messages of `size` bytes, the last one shorter."""
    offset, buffer = start, bytearray()
    for rest in _from_byte(start, pieces):
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
    number = enum_number(SWAP_MODES, "mode", mode)
    request = weights_pb2.CommitPushRequest(push_id=push_id)
    set_fields(request, "", mode=number)
    return request


def get_push_request(push_id: str, run_id: str, new_step: int) -> weights_pb2.GetPushRequest:
    """By its id, or else by the run and step of its manifest."""
    request = weights_pb2.GetPushRequest()
    set_fields(request, "", push_id=push_id, run_id=run_id, new_step=new_step)
    return request


def _fill_manifest(message: weights_pb2.PushManifest, manifest: data.PushManifest) -> None:
    """Encoding FULL, the only one there is."""
    message.encoding = weights_pb2.PUSH_ENCODING_FULL
    set_fields(message, "manifest.", base_step=manifest.base_step, new_step=manifest.new_step)
    set_fields(message, "manifest.", run_id=manifest.run_id, weights_sha256=manifest.weights_sha256)
    for index, tensor in enumerate(manifest.tensors):
        path = f"manifest.tensors[{index}]."
        spec = message.tensors.add()
        set_fields(spec, path, name=tensor.name, dtype=enum_number(DTYPES, f"{path}dtype", tensor.dtype))
        extend(spec.shape, f"{path}shape", tensor.shape)


def _from_byte(start: int, pieces: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    for piece in pieces:
        view = memoryview(piece).cast("B")
        yield view[start:]
        start = max(0, start - view.nbytes)


def _fill_prompt(message: policy_pb2.Prompt, path: str, prompt: data.Prompt) -> None:
    if isinstance(prompt, str):
        set_fields(message, path, text=prompt)
    elif isinstance(prompt, data.Chat):
        fill_chat(message.chat, f"{path}chat.", prompt)
    else:
        message.token_ids.SetInParent()  # an empty list is still the form that was chosen
        extend(message.token_ids.ids, f"{path}token_ids.ids", prompt)
