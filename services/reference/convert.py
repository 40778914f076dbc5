"""Between the reference service's messages and its own words: the only place that knows both."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice

from plaudit.v1 import reference_pb2, types_pb2
from services.batching import CallLimits
from services.errors import InvalidInput, Violation
from services.reference.items import Item, ModelFacts
from services.rpc import convert
from services.rpc.metrics import Queue

MOST_VIOLATIONS = 8
"""Enough to see what is wrong with a batch."""


def items(request: reference_pb2.ComputeLogprobsRequest, facts: ModelFacts, limits: CallLimits) -> list[Item]:
    """The request's sequences. Raises InvalidInput with the first violations found."""
    _check_size(request, limits)
    temperature = request.temperature if request.HasField("temperature") else 1.0
    if not (math.isfinite(temperature) and temperature >= convert.LEAST_TEMPERATURE):
        raise InvalidInput.at("temperature", f"is {temperature:g}; use {convert.LEAST_TEMPERATURE:g} or more")
    found = [Item(list(sequence.token_ids), sequence.start, temperature) for sequence in request.sequences]
    violations = list(islice(_violations(found, facts), MOST_VIOLATIONS))
    if violations:
        raise InvalidInput(violations)
    return found


def compute_logprobs_response(
    rows: Sequence[Sequence[float]], facts: ModelFacts
) -> reference_pb2.ComputeLogprobsResponse:
    """One message per sequence."""
    return reference_pb2.ComputeLogprobsResponse(
        sequences=[reference_pb2.SequenceLogprobs(logprobs=row) for row in rows], model=model_version(facts)
    )


def get_reference_response(
    facts: ModelFacts, limits: CallLimits, queue: Queue
) -> reference_pb2.GetReferenceResponse:
    """All there is to know about the model."""
    return reference_pb2.GetReferenceResponse(
        model=model_version(facts),
        dtype=convert.data_type(facts.dtype),
        vocabulary_size=facts.vocabulary_size,
        context_length=facts.context_length,
        limits=convert.call_limits(limits),
        queue=convert.queue_depth(queue),
    )


def model_version(facts: ModelFacts) -> types_pb2.ModelVersion:
    """The reference is always as it was on disk: no run, step 0."""
    return types_pb2.ModelVersion(
        model_id=facts.model_id,
        weights_sha256=facts.weights_sha256,
        tokenizer_sha256=facts.tokenizer_sha256,
    )


def _check_size(request: reference_pb2.ComputeLogprobsRequest, limits: CallLimits) -> None:
    if not request.sequences:
        raise InvalidInput.at("sequences", "is empty; send at least one")
    count = len(request.sequences)
    if count > limits.max_items:
        raise InvalidInput.at("sequences", f"holds {count}, a call at most {limits.max_items}; split it")
    tokens = sum(len(sequence.token_ids) for sequence in request.sequences)
    if tokens > limits.max_tokens:
        raise InvalidInput.at(
            "sequences", f"hold {tokens} tokens, a call at most {limits.max_tokens}; split it"
        )


def _violations(items: Sequence[Item], facts: ModelFacts) -> Iterator[Violation]:
    for index, item in enumerate(items):
        path, length = f"sequences[{index}]", len(item.ids)
        if length > facts.context_length:
            text = f"holds {length} tokens, the model reads at most {facts.context_length}; shorten it"
            yield Violation(f"{path}.token_ids", text)
        if length < 2:
            yield Violation(f"{path}.token_ids", f"holds {length} tokens; send a prompt and a response")
        elif not 1 <= item.start < length:
            text = f"is {item.start}; use 1 to {length - 1}, the positions that have tokens before them"
            yield Violation(f"{path}.start", text)
        if item.ids and max(item.ids) >= facts.vocabulary_size:
            wrong = next(at for at, id_ in enumerate(item.ids) if id_ >= facts.vocabulary_size)
            text = f"is {item.ids[wrong]}, the vocabulary ends at {facts.vocabulary_size - 1}"
            yield Violation(f"{path}.token_ids[{wrong}]", text)
