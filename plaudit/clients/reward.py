"""Clients of the reward model, which says how good a response is."""

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Sequence
from functools import partial
from typing import Unpack

from plaudit.clients import from_proto, to_proto_reward as to_proto
from plaudit.clients.calls import AsyncClient, Client
from plaudit.clients.channel import Method
from plaudit.clients.data import Chat, Scorable
from plaudit.clients.data_reward import (
    Comparison,
    ListedModel,
    Ranking,
    Reward,
    RewardInfo,
    ScoreOptions,
    Scores,
)
from plaudit.clients.errors import InvalidArgument, ItemFailure
from plaudit.clients.progress import watched, watched_async
from plaudit.clients.score_many import AwaitedScoring, BlockingScoring
from plaudit.v1.reward_pb2 import (
    CompareRequest,
    CompareResponse,
    GetModelRequest,
    GetModelResponse,
    ListModelsRequest,
    ListModelsResponse,
    RankRequest,
    RankResponse,
    ScoreRequest,
    ScoreResponse,
    ScoreStreamRequest,
    ScoreStreamResponse,
)

SERVICE = "plaudit.v1.RewardService"
SCORE: Method[ScoreRequest, ScoreResponse] = Method(SERVICE, "Score", ScoreResponse)
SCORE_STREAM: Method[ScoreStreamRequest, ScoreStreamResponse] = Method(
    SERVICE, "ScoreStream", ScoreStreamResponse
)
RANK: Method[RankRequest, RankResponse] = Method(SERVICE, "Rank", RankResponse)
COMPARE: Method[CompareRequest, CompareResponse] = Method(SERVICE, "Compare", CompareResponse)
GET_MODEL: Method[GetModelRequest, GetModelResponse] = Method(SERVICE, "GetModel", GetModelResponse)
LIST_MODELS: Method[ListModelsRequest, ListModelsResponse] = Method(SERVICE, "ListModels", ListModelsResponse)


class RewardClient(Client):
    """Asks a reward model for scores.

    >>> from plaudit import RewardClient
    >>> pairs = [("The film was", " a joy."), ("The film was", " a bore.")]
    >>> with RewardClient("127.0.0.1:50052") as reward:
    ...     scores = reward.score(pairs)
    >>> scores.rewards.shape
    (2,)
    """

    _service = "reward"
    _may_hedge = True

    def score(
        self,
        items: Sequence[Scorable | ItemFailure],
        *,
        all_or_nothing: bool = False,
        tokenizer_sha256: str = "",
        timeout: float | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Scores:
        """One Reward or ItemFailure per item: (prompt, response), a Chat, or the ids of both.

        A bad item has a failure of its own and its neighbours their rewards, also one that can't even be
        sent; an ItemFailure among the items is given back in its place. With `all_or_nothing` the call
        raises instead, naming every bad item. Ids need `tokenizer_sha256`, that of the tokenizer
        that made them; FailedPrecondition if it isn't the model's. `options` are those of ScoreOptions;
        NotFound for a `model` that the server doesn't have. Raises a PlauditError.

        >>> from plaudit import Reward, RewardClient
        >>> with RewardClient("127.0.0.1:50052") as client:
        ...     for result in client.score([("The film was", " a joy."), ("", "")]):
        ...         print(result.token_count > 0 if isinstance(result, Reward) else result.code)
        True
        INVALID_ARGUMENT
        """
        chosen = to_proto.score_options(**options)
        request, unsendable = to_proto.score_request(items, all_or_nothing, tokenizer_sha256, chosen)
        with unsendable.named():
            return from_proto.scores(self._call(SCORE, request, timeout), unsendable)

    def score_many(
        self,
        items: Iterable[Scorable],
        *,
        window: int = 512,
        progress: bool = False,
        tokenizer_sha256: str = "",
        timeout: float | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Generator[Reward | ItemFailure, None, None]:
        """Streams any number of items; gives their results in the order of the items, in flat memory.

        Items are taken between the results, in the caller's thread, at most `window` of them ahead of
        the result that is given; so `items` must not wait for a result before they give the next item.
        One that can't be sent is an ItemFailure like one that can't be scored. `progress` shows a bar
        on stderr, with the time that is left if len(items) is known. `tokenizer_sha256` and `options`
        as in score.

        A stream that breaks, or a service that is full, is borne for `timeout` seconds without any
        result: what has no result is sent again, to the next address if there are several, a bounded
        number of times in a row. Then, or for what another try can't mend, a PlauditError is raised; of
        a service that goes silent DeadlineExceeded, of one that goes on with other weights
        FailedPrecondition. What `items` raise comes out after the results of
        the items before. Closing the generator ends the stream.

        >>> from plaudit import Reward, RewardClient
        >>> pairs = (("The film was", f" number {number}.") for number in range(1000))
        >>> with RewardClient("127.0.0.1:50052") as client:
        ...     sum(isinstance(result, Reward) for result in client.score_many(pairs))
        1000
        """
        return watched(
            BlockingScoring(
                partial(self._open_stream, SCORE_STREAM),
                to_proto.score_stream_request(tokenizer_sha256, to_proto.score_options(**options)),
                _checked_window(window),
                self.seconds(timeout),
            ).results(items),
            items,
            progress,
        )

    def rank(
        self,
        prompt: str | Chat,
        candidates: Sequence[str],
        *,
        top_n: int | None = None,
        all_or_nothing: bool = False,
        timeout: float | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Ranking:
        """Orders responses to one prompt, best first; `top_n` keeps only so many of them.

        A candidate is the rest of a text, or the assistant's next turn in a Chat. A bad one is among
        the unranked; with `all_or_nothing` the call raises instead. `options` and errors as in score.

        >>> from plaudit import Chat, RewardClient
        >>> with RewardClient("127.0.0.1:50052") as client:
        ...     ranking = client.rank(Chat([("user", "How was it?")]), ["Good.", "Bad.", "Long."], top_n=2)
        >>> [candidate.rank for candidate in ranking.ranked]
        [1, 2]
        """
        chosen = to_proto.score_options(**options)
        request = to_proto.rank_request(prompt, candidates, top_n, all_or_nothing, chosen)
        return from_proto.ranking(self._call(RANK, request, timeout))

    def compare(
        self,
        prompt: str | Chat,
        first: str,
        second: str,
        *,
        temperature: float | None = None,
        timeout: float | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Comparison:
        """How probably people prefer the `first` response to the `second` (Bradley and Terry 1952).

        `temperature` divides the difference of the raw rewards; the model's own if left out. A bad
        response raises InvalidArgument. `options` and other errors as in score.

        >>> from plaudit import RewardClient
        >>> with RewardClient("127.0.0.1:50052") as client:
        ...     comparison = client.compare("The film was", " a joy.", " a joy.")
        >>> comparison.probability
        0.5
        """
        chosen = to_proto.score_options(**options)
        request = to_proto.compare_request(prompt, first, second, temperature, chosen)
        return from_proto.comparison(self._call(COMPARE, request, timeout))

    def get_model(self, name: str = "", *, timeout: float | None = None) -> RewardInfo:
        """What is loaded under `name`, or as the default; on one replica where there are several."""
        request = to_proto.get_model_request(name)
        return from_proto.reward_info(self._call(GET_MODEL, request, timeout))

    def list_models(self, *, timeout: float | None = None) -> tuple[ListedModel, ...]:
        """The models of the server, the default first.

        >>> from plaudit import RewardClient
        >>> with RewardClient("127.0.0.1:50052") as client:
        ...     [model.name for model in client.list_models()]
        ['reward']
        """
        return from_proto.listed_models(self._call(LIST_MODELS, ListModelsRequest(), timeout))


class AsyncRewardClient(AsyncClient):
    """RewardClient to be awaited.

    Any number of calls may be made at once; the client has `max_in_flight` of them under way.

    >>> import asyncio
    >>> from plaudit import AsyncRewardClient
    >>> async def best_of(prompt: str, responses: list[str]) -> str:
    ...     async with AsyncRewardClient("127.0.0.1:50052") as reward:
    ...         ranking = await reward.rank(prompt, responses)
    ...     return responses[ranking.ranked[0].index]
    >>> asyncio.run(best_of("The film was", [" good.", " bad."])) in (" good.", " bad.")
    True
    """

    _service = "reward"
    _may_hedge = True

    async def score(
        self,
        items: Sequence[Scorable | ItemFailure],
        *,
        all_or_nothing: bool = False,
        tokenizer_sha256: str = "",
        timeout: float | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Scores:
        """As RewardClient.score."""
        chosen = to_proto.score_options(**options)
        request, unsendable = to_proto.score_request(items, all_or_nothing, tokenizer_sha256, chosen)
        with unsendable.named():
            return from_proto.scores(await self._call(SCORE, request, timeout), unsendable)

    def score_many(
        self,
        items: Iterable[Scorable] | AsyncIterable[Scorable],
        *,
        window: int = 512,
        progress: bool = False,
        tokenizer_sha256: str = "",
        timeout: float | None = None,
        **options: Unpack[ScoreOptions],
    ) -> AsyncGenerator[Reward | ItemFailure, None]:
        """As RewardClient.score_many, to be used with `async for`.

        Items are taken in a task of its own, so that AsyncIterable ones may also wait for results.
        """
        return watched_async(
            AwaitedScoring(
                partial(self._streaming._open_stream, SCORE_STREAM),
                to_proto.score_stream_request(tokenizer_sha256, to_proto.score_options(**options)),
                _checked_window(window),
                self.seconds(timeout),
            ).results(items),
            items,
            progress,
        )

    async def rank(
        self,
        prompt: str | Chat,
        candidates: Sequence[str],
        *,
        top_n: int | None = None,
        all_or_nothing: bool = False,
        timeout: float | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Ranking:
        """As RewardClient.rank."""
        chosen = to_proto.score_options(**options)
        request = to_proto.rank_request(prompt, candidates, top_n, all_or_nothing, chosen)
        return from_proto.ranking(await self._call(RANK, request, timeout))

    async def compare(
        self,
        prompt: str | Chat,
        first: str,
        second: str,
        *,
        temperature: float | None = None,
        timeout: float | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Comparison:
        """As RewardClient.compare."""
        chosen = to_proto.score_options(**options)
        request = to_proto.compare_request(prompt, first, second, temperature, chosen)
        return from_proto.comparison(await self._call(COMPARE, request, timeout))

    async def get_model(self, name: str = "", *, timeout: float | None = None) -> RewardInfo:
        """As RewardClient.get_model."""
        return from_proto.reward_info(await self._call(GET_MODEL, to_proto.get_model_request(name), timeout))

    async def list_models(self, *, timeout: float | None = None) -> tuple[ListedModel, ...]:
        """As RewardClient.list_models."""
        return from_proto.listed_models(await self._call(LIST_MODELS, ListModelsRequest(), timeout))


def _checked_window(window: int) -> int:
    if window < 1:
        raise InvalidArgument.at("window", f"{window}; at least one item is in flight")
    return window
