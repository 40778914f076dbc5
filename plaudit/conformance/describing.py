"""Checks of what a server says about itself."""

import math
import re
from collections import Counter

import grpc
from grpc_reflection.v1alpha.reflection_pb2 import (  # type: ignore[import-untyped]
    ServerReflectionRequest,
    ServerReflectionResponse,
)

from plaudit.clients import Unimplemented
from plaudit.clients.channel import Method
from plaudit.clients.reward import SERVICE
from plaudit.conformance.subject import RESPONSES, Subject, pair, refused
from plaudit.conformance.verdicts import Check, expect
from plaudit.health import HealthClient
from plaudit.v1 import reward_pb2, types_pb2

_NOWHERE = "no-such-model-on-any-server"
_NOT_FOUND = grpc.StatusCode.NOT_FOUND
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _model_is_described(subject: Subject) -> None:
    info = subject.info
    expect(bool(info.name), "name is empty")
    expect(info.dtype != types_pb2.DATA_TYPE_UNSPECIFIED, "dtype is unspecified")
    expect(info.vocabulary_size > 0, "vocabulary_size is 0")
    expect(info.context_length > 0, "context_length is 0")
    expect(math.isfinite(info.reward_mean), f"reward_mean is {info.reward_mean}")
    expect(info.reward_std > 0 and math.isfinite(info.reward_std), f"reward_std is {info.reward_std}")
    expect(info.compare_temperature > 0, f"compare_temperature is {info.compare_temperature}")


def _version_is_stated(subject: Subject) -> None:
    model = subject.info.model
    expect(bool(model.model_id), "model_id is empty")
    digests = {"weights_sha256": model.weights_sha256, "tokenizer_sha256": model.tokenizer_sha256}
    if not model.tokenizer_sha256 and subject.info.components:
        del digests["tokenizer_sha256"]  # an ensemble of members that read different ones
    for name, digest in digests.items():
        expect(bool(_SHA256.fullmatch(digest)), f"{name} is {digest!r}, not 64 hexadecimal digits")


def _answers_carry_the_version(subject: Subject) -> None:
    model = subject.info.model
    models = {
        "Score": subject.score(pair(RESPONSES[0])).model,
        "Rank": subject.rank(*RESPONSES[:2]).model,
        "Compare": subject.compare(*RESPONSES[:2]).model,
    }
    for method, found in models.items():
        expect(found == model, f"{method} names another model than GetModel")


def _limits_are_stated(subject: Subject) -> None:
    limits = subject.info.limits
    for name in ("max_items", "max_tokens", "max_message_bytes"):
        expect(getattr(limits, name) > 0, f"limits.{name} is 0")
    expect(subject.info.stream_window > 0, "stream_window is 0")


def _models_are_listed(subject: Subject) -> None:
    listed = subject.list_models().models
    expect(len(listed) > 0, "there are none")
    doubled = [name for name, count in Counter(each.name for each in listed).items() if count > 1]
    expect(not doubled, f"{doubled} several times")
    default = subject.get_model("").name
    expect(listed[0].name == default, f"the first is {listed[0].name!r}, the default {default!r}")
    for each in listed:
        model = subject.get_model(each.name).model
        expect(model == each.model, f"of {each.name!r} GetModel says another version")


def _unknown_models_are_refused(subject: Subject) -> None:
    options = reward_pb2.ScoreOptions(model=_NOWHERE)
    item = pair(RESPONSES[0])
    refused(_NOT_FOUND, "GetModel", lambda: subject.get_model(_NOWHERE))
    refused(_NOT_FOUND, "Score", lambda: subject.score(item, options=options))
    refused(_NOT_FOUND, "Rank", lambda: subject.rank(*RESPONSES, options=options))
    refused(_NOT_FOUND, "Compare", lambda: subject.compare(*RESPONSES[:2], options=options))
    stream_item = reward_pb2.StreamItem(item_id="one", item=item)
    message = reward_pb2.ScoreStreamRequest(options=options, items=[stream_item])
    refused(_NOT_FOUND, "ScoreStream", lambda: subject.score_stream(message))


def _health_is_told(subject: Subject) -> None:
    with HealthClient(subject.addresses) as client:
        for service, right in (("", "serving"), (SERVICE, "serving"), ("no.such.Service", "not there")):
            found = client.check(service)
            expect(found == right, f"{service or 'the process'!r} is {found}")


def _reflection_is_answered(subject: Subject) -> None:
    request = ServerReflectionRequest(list_services="")
    try:
        responses = subject.stream(_reflection("v1alpha"), [request])
    except Unimplemented:
        responses = subject.stream(_reflection("v1"), [request])
    names = [service.name for each in responses for service in each.list_services_response.service]
    expect(SERVICE in names, f"it lists {', '.join(names) or 'nothing'}")


def _reflection(version: str) -> Method[ServerReflectionRequest, ServerReflectionResponse]:
    service = f"grpc.reflection.{version}.ServerReflection"
    return Method(service, "ServerReflectionInfo", ServerReflectionResponse)


CHECKS = (
    Check("health", "grpc.health.v1 tells of the process and of the service", _health_is_told),
    Check("reflection", f"reflection lists {SERVICE}", _reflection_is_answered),
    Check("model", "GetModel describes the model", _model_is_described),
    Check("version", "GetModel states the model's id and both digests", _version_is_stated),
    Check("limits", "GetModel states what a call and a stream may carry", _limits_are_stated),
    Check("list", "ListModels names each model once, the default first", _models_are_listed),
    Check("same version", "every answer carries the version of GetModel", _answers_carry_the_version),
    Check(
        "unknown model", "a model that isn't there is NOT_FOUND in every call", _unknown_models_are_refused
    ),
)
