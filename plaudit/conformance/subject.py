"""The server under test, asked in the words of the contract itself."""

from collections.abc import Callable, Iterable
from functools import cached_property
from operator import methodcaller
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from plaudit.clients import PlauditError
from plaudit.clients.calls import Client
from plaudit.clients.channel import Method
from plaudit.clients.reward import COMPARE, GET_MODEL, LIST_MODELS, RANK, SCORE, SCORE_STREAM
from plaudit.conformance.verdicts import Broken, expect
from plaudit.v1 import reward_pb2, types_pb2

ResponseT = TypeVar("ResponseT", bound=Message)

FLOAT32_TOLERANCE, HALF_TOLERANCE = 1e-5, 3e-2
"""How far two scores of one text may be apart, relative to the larger of them and 1."""
_PRECISE = (types_pb2.DATA_TYPE_F32, types_pb2.DATA_TYPE_F64)
PROMPT = "The film was"
RESPONSES = (
    " a joy.",
    " dull.",
    " long, slow and lifeless, and it never found its story.",
    " fine, I think.",
    " one of the best of its year, and it deserves to be seen twice.",
)
GOOD = reward_pb2.ScoreItem(pair=types_pb2.TextPair(prompt=PROMPT, response=RESPONSES[0]))
EMPTY = reward_pb2.ScoreItem(pair=types_pb2.TextPair(prompt=PROMPT, response=""))
MALFORMED = reward_pb2.ScoreItem()


def pair(response: str) -> reward_pb2.ScoreItem:
    """A response to PROMPT."""
    return reward_pb2.ScoreItem(pair=types_pb2.TextPair(prompt=PROMPT, response=response))


def ids(*values: int) -> reward_pb2.ScoreItem:
    """Token ids."""
    return reward_pb2.ScoreItem(token_ids=types_pb2.TokenIds(ids=values))


class Subject(Client):
    """Calls raise PlauditError, whose cause is gRPC's own error."""

    _service = "reward"
    model_name = ""
    """The model that is asked; the default one if empty."""
    long_timeout = 600.0
    """Seconds for a call with a whole context in it, which a slow server may need minutes for."""

    @cached_property
    def info(self) -> reward_pb2.GetModelResponse:
        """What the server says of the model."""
        return self.get_model(self.model_name)

    @property
    def options(self) -> reward_pb2.ScoreOptions:
        """Those that name the model."""
        return reward_pb2.ScoreOptions(model=self.model_name)

    def get_model(self, name: str) -> reward_pb2.GetModelResponse:
        """GetModel."""
        return self._call(GET_MODEL, reward_pb2.GetModelRequest(name=name), None)

    def list_models(self) -> reward_pb2.ListModelsResponse:
        """ListModels."""
        return self._call(LIST_MODELS, reward_pb2.ListModelsRequest(), None)

    def score(
        self,
        *items: reward_pb2.ScoreItem,
        options: reward_pb2.ScoreOptions | None = None,
        all_or_nothing: bool = False,
        tokenizer_sha256: str = "",
        timeout: float | None = None,
    ) -> reward_pb2.ScoreResponse:
        """Score."""
        request = reward_pb2.ScoreRequest(
            items=items,
            options=options or self.options,
            all_or_nothing=all_or_nothing,
            tokenizer_sha256=tokenizer_sha256,
        )
        return self._call(SCORE, request, timeout)

    def results(
        self, *items: reward_pb2.ScoreItem, tokenizer_sha256: str = ""
    ) -> list[reward_pb2.ScoreResult]:
        """Score, one result for each item."""
        results = [*self.score(*items, tokenizer_sha256=tokenizer_sha256).results]
        expect(len(results) == len(items), f"{len(results)} results for {len(items)} items")
        return results

    def rewards(
        self,
        *items: reward_pb2.ScoreItem,
        options: reward_pb2.ScoreOptions | None = None,
        timeout: float | None = None,
    ) -> list[reward_pb2.Reward]:
        """Score, where every item must have a reward."""
        results = self.score(*items, options=options, timeout=timeout).results
        expect(len(results) == len(items), f"{len(results)} results for {len(items)} items")
        for index, result in enumerate(results):
            expect(result.HasField("reward"), f"items[{index}] has no reward: {result.error.message}")
        return [result.reward for result in results]

    def rank(
        self,
        *candidates: str,
        options: reward_pb2.ScoreOptions | None = None,
        top_n: int | None = None,
        all_or_nothing: bool = False,
    ) -> reward_pb2.RankResponse:
        """Rank responses to PROMPT."""
        request = reward_pb2.RankRequest(
            text=PROMPT,
            candidates=candidates,
            options=options or self.options,
            top_n=top_n,
            all_or_nothing=all_or_nothing,
        )
        return self._call(RANK, request, None)

    def compare(
        self,
        first: str,
        second: str,
        options: reward_pb2.ScoreOptions | None = None,
        temperature: float | None = None,
    ) -> reward_pb2.CompareResponse:
        """Compare responses to PROMPT."""
        request = reward_pb2.CompareRequest(
            text=PROMPT,
            first=first,
            second=second,
            options=options or self.options,
            temperature=temperature,
        )
        return self._call(COMPARE, request, None)

    def score_stream(self, *messages: reward_pb2.ScoreStreamRequest) -> list[reward_pb2.StreamResult]:
        """ScoreStream; all results, once the server has ended the stream."""
        responses = self.stream(SCORE_STREAM, messages)
        return [result for response in responses for result in response.results]

    def stream(self, method: Method[Any, ResponseT], requests: Iterable[Message]) -> list[ResponseT]:
        """Any call with a stream in both directions."""
        tries = self.tries(method, None)
        channel = self._channels[tries.first.channel_index]
        to_bytes, from_bytes = methodcaller("SerializeToString"), method.response.FromString
        call = channel.stream_stream(method.path, to_bytes, from_bytes)
        try:
            return list(call(iter(requests), **tries.first.arguments(tries.left)))
        except grpc.RpcError as error:
            raise tries.failure(tries.first, error, lambda: True) from error

    def too_long(self) -> reward_pb2.ScoreItem:
        """More tokens than the model reads: each of its words is one at least."""
        return pair(" word" * (self.info.context_length + 1))

    def could_read(self, token_count: int) -> bool:
        """Whether the model reads so many tokens; an ensemble tells its shortest member's length only."""
        is_ensemble = any(component.HasField("model") for component in self.info.components)
        return token_count > 0 and (is_ensemble or token_count <= self.info.context_length)

    def close_to(self, one: float, other: float) -> bool:
        """Whether two scores are the same, as far as the model's data type allows."""
        tolerance = FLOAT32_TOLERANCE if self.info.dtype in _PRECISE else HALF_TOLERANCE
        return abs(one - other) <= tolerance * max(1.0, abs(one), abs(other))

    def expect_close(self, what: str, one: float, other: float) -> None:
        """Raises Broken."""
        expect(self.close_to(one, other), f"{what}: {one:.7g} and {other:.7g}")


def fields_of(error: PlauditError) -> list[str]:
    """Paths that a refusal names."""
    return [violation.field for violation in error.violations]


def refused(code: grpc.StatusCode, what: str, ask: Callable[[], object]) -> PlauditError:
    """The error of a call that must end with `code`."""
    try:
        ask()
    except PlauditError as error:
        found = error.__cause__.code() if isinstance(error.__cause__, grpc.RpcError) else None
        expect(found is code, f"{what} was {found.name if found else 'not sent'}: {error.reason}")
        return error
    raise Broken(f"{what} was answered")
