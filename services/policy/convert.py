"""Between PolicyService's messages and the policy's own words: the only place that knows both."""

import math
import secrets
from collections.abc import Iterator, Sequence
from itertools import islice

from lm.errors import InputError
from plaudit.v1 import policy_pb2, types_pb2
from services.batching import CallLimits
from services.errors import InvalidInput, Violation
from services.policy.interface import Engine, Generated, GenerationRequest, ModelFacts, Version
from services.rpc import convert
from services.rpc.metrics import Queue

MOST_VIOLATIONS = 8
"""Enough to see what is wrong with a batch."""

_FINISH_REASONS = {
    "eos": policy_pb2.FINISH_REASON_EOS,
    "stop_token": policy_pb2.FINISH_REASON_STOP_TOKEN,
    "stop_string": policy_pb2.FINISH_REASON_STOP_STRING,
    "length": policy_pb2.FINISH_REASON_LENGTH,
}


def generation_request(
    request: policy_pb2.GenerateRequest,
    engine: Engine,
    limits: CallLimits,
    deadline: float | None,
    size: int = 0,
) -> GenerationRequest:
    """The request in token ids, with a seed for each prompt. Tokenises, which may take a while.

    Raises InvalidInput with the first violations found.
    """
    sampling = request.sampling
    count_sequences(request, limits)
    _refuse(_sampling_violations(sampling, engine.facts))
    asked = GenerationRequest(
        prompts=_encode_prompts(request, engine),
        seeds=tuple(_seed(prompt) for prompt in request.prompts),
        max_new_tokens=sampling.max_new_tokens,
        samples_per_prompt=_samples(request),
        temperature=_temperature(sampling),
        top_k=sampling.top_k,
        top_p=_top_p(sampling),
        stop_token_ids=frozenset(sampling.stop_token_ids),
        stop_strings=tuple(sampling.stop_strings),
        deterministic=request.deterministic,
        step_at_least=request.step_at_least if request.HasField("step_at_least") else None,
        step_exactly=request.step_exactly if request.HasField("step_exactly") else None,
        deadline=deadline,
        size=size,
    )
    if asked.tokens > limits.max_tokens:
        text = f"with their responses hold up to {asked.tokens} tokens, a call at most {limits.max_tokens}"
        raise InvalidInput.at("prompts", f"{text}; split it")
    return asked


def generate_response(
    request: GenerationRequest, sequences: Sequence[Generated], facts: ModelFacts, version: Version
) -> policy_pb2.GenerateResponse:
    """The responses, in the order given."""
    return policy_pb2.GenerateResponse(
        sequences=[_sequence(generated) for generated in sequences],
        prompt_token_ids=[types_pb2.TokenIds(ids=ids) for ids in request.prompts],
        model=model_version(facts, version),
    )


def get_policy_response(
    facts: ModelFacts, version: Version, limits: CallLimits, queue: Queue
) -> policy_pb2.GetPolicyResponse:
    """All there is to know about the policy."""
    return policy_pb2.GetPolicyResponse(
        model=model_version(facts, version),
        engine="torch",
        dtype=convert.data_type(facts.dtype),
        vocabulary_size=facts.vocabulary_size,
        context_length=facts.context_length,
        eos_token_ids=facts.eos_token_ids,
        has_chat_template=bool(facts.chat_template_sha256),
        chat_template_sha256=facts.chat_template_sha256,
        swap_modes=[policy_pb2.SWAP_MODE_IN_PLACE, policy_pb2.SWAP_MODE_DRAIN],
        limits=convert.call_limits(limits),
        queue=convert.queue_depth(queue),
    )


def model_version(facts: ModelFacts, version: Version) -> types_pb2.ModelVersion:
    """The weights and tokenizer behind an answer."""
    return types_pb2.ModelVersion(
        model_id=facts.model_id,
        run_id=version.run_id,
        step=version.step,
        weights_sha256=version.weights_sha256,
        tokenizer_sha256=facts.tokenizer_sha256,
    )


def _sequence(generated: Generated) -> policy_pb2.GeneratedSequence:
    return policy_pb2.GeneratedSequence(
        prompt_index=generated.prompt_index,
        sample_index=generated.sample_index,
        token_ids=generated.token_ids,
        text=generated.text,
        finish_reason=_FINISH_REASONS[generated.finish],
        logprobs=generated.logprobs,
        logprobs_temperature_1=generated.logprobs_temperature_1,
        version_spans=[
            policy_pb2.VersionSpan(step=step, start=start, end=end)
            for step, start, end in generated.version_spans
        ],
        seed=generated.seed,
    )


def _samples(request: policy_pb2.GenerateRequest) -> int:
    return request.samples_per_prompt if request.HasField("samples_per_prompt") else 1


def _seed(prompt: policy_pb2.Prompt) -> int:
    return prompt.seed if prompt.HasField("seed") else secrets.randbits(64)


def _temperature(sampling: policy_pb2.SamplingParams) -> float:
    return sampling.temperature if sampling.HasField("temperature") else 1.0


def _top_p(sampling: policy_pb2.SamplingParams) -> float:
    return sampling.top_p if sampling.HasField("top_p") else 1.0


def count_sequences(request: policy_pb2.GenerateRequest, limits: CallLimits) -> int:
    """Responses asked for. Raises InvalidInput for none, and for more than a call may ask for."""
    samples = _samples(request)
    count = len(request.prompts) * samples
    if not request.prompts:
        raise InvalidInput.at("prompts", "is empty; send at least one")
    if samples == 0:
        raise InvalidInput.at("samples_per_prompt", "is 0; use 1 or more")
    if count > limits.max_items:
        text = f"ask for {count} responses, a call may for {limits.max_items}; split it"
        raise InvalidInput.at("prompts", text)
    return count


def _refuse(violations: Iterator[Violation]) -> None:
    """Raises InvalidInput if there are any."""
    found = list(islice(violations, MOST_VIOLATIONS))
    if found:
        raise InvalidInput(found)


def _sampling_violations(sampling: policy_pb2.SamplingParams, facts: ModelFacts) -> Iterator[Violation]:
    if sampling.max_new_tokens == 0:
        yield Violation("sampling.max_new_tokens", "is 0; use 1 or more")
    temperature, top_p = _temperature(sampling), _top_p(sampling)
    if not (math.isfinite(temperature) and (temperature == 0 or temperature >= convert.LEAST_TEMPERATURE)):
        text = f"is {temperature:g}; use 0 for the likeliest token, or {convert.LEAST_TEMPERATURE:g} or more"
        yield Violation("sampling.temperature", text)
    if not 0 < top_p <= 1:
        yield Violation("sampling.top_p", f"is {top_p:g}; use a number above 0 and at most 1")
    for at, id_ in enumerate(sampling.stop_token_ids):
        if id_ >= facts.vocabulary_size:
            yield Violation(f"sampling.stop_token_ids[{at}]", _beyond(id_, facts))
    for at, string in enumerate(sampling.stop_strings):
        if not string:
            yield Violation(f"sampling.stop_strings[{at}]", "is empty; leave it out")


def _encode_prompts(request: policy_pb2.GenerateRequest, engine: Engine) -> tuple[tuple[int, ...], ...]:
    prompts: list[tuple[int, ...]] = []
    violations: list[Violation] = []
    for index, prompt in enumerate(request.prompts):
        try:
            ids = _encode(prompt, f"prompts[{index}]", engine)
            _check_length(ids, request.sampling.max_new_tokens, f"prompts[{index}]", engine.facts)
            prompts.append(ids)
        except InvalidInput as error:
            violations += error.violations
        except InputError as error:
            violations.append(Violation(error.field, error.description))
        if len(violations) >= MOST_VIOLATIONS:
            break
    _refuse(iter(violations))
    return tuple(prompts)


def _encode(prompt: policy_pb2.Prompt, path: str, engine: Engine) -> tuple[int, ...]:
    match prompt.WhichOneof("input"):
        case "token_ids":
            path = f"{path}.token_ids.ids"
            ids = list(prompt.token_ids.ids)
            _check_vocabulary(ids, path, engine.facts)
        case "text":
            path = f"{path}.text"
            ids = engine.encode_text(prompt.text, path)
        case "chat":
            path = f"{path}.chat.messages"
            ids = engine.encode_chat([(turn.role, turn.content) for turn in prompt.chat.messages], path)
        case _:
            raise InvalidInput.at(path, "has no input; set token_ids, text or chat")
    if not ids:
        raise InvalidInput.at(path, "is empty; a response needs at least one token to follow")
    return tuple(ids)


def _check_vocabulary(ids: Sequence[int], path: str, facts: ModelFacts) -> None:
    if ids and max(ids) >= facts.vocabulary_size:
        wrong = next(at for at, id_ in enumerate(ids) if id_ >= facts.vocabulary_size)
        raise InvalidInput.at(f"{path}[{wrong}]", _beyond(ids[wrong], facts))


def _check_length(ids: Sequence[int], new_tokens: int, path: str, facts: ModelFacts) -> None:
    over = len(ids) + new_tokens - facts.context_length
    if over > 0:
        raise InvalidInput.at(
            path,
            f"holds {len(ids)} tokens, with {new_tokens} new ones {over} more than the context of "
            f"{facts.context_length}; shorten it, or lower sampling.max_new_tokens",
        )


def _beyond(id_: int, facts: ModelFacts) -> str:
    return f"is {id_}, the vocabulary ends at {facts.vocabulary_size - 1}"
