"""Clients of the reward model, which says how good a response is."""

from collections.abc import Sequence

from plaudit.clients import from_proto, to_proto
from plaudit.clients.calls import AsyncClient, Client
from plaudit.clients.channel import Method
from plaudit.clients.data import RewardInfo, Scorable, Scores
from plaudit.v1.reward_pb2 import GetModelRequest, GetModelResponse, ScoreRequest, ScoreResponse

SERVICE = "plaudit.v1.RewardService"
SCORE: Method[ScoreRequest, ScoreResponse] = Method(SERVICE, "Score", ScoreResponse)
GET_MODEL: Method[GetModelRequest, GetModelResponse] = Method(SERVICE, "GetModel", GetModelResponse)


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

    def score(
        self,
        items: Sequence[Scorable],
        *,
        all_or_nothing: bool = False,
        tokenizer_sha256: str = "",
        timeout: float | None = None,
    ) -> Scores:
        """One Reward or ItemFailure per item: (prompt, response), a Chat, or the ids of both.

        A bad item has a failure of its own and its neighbours their rewards; with `all_or_nothing` the
        call raises the first item's error instead. Ids need `tokenizer_sha256`, that of the tokenizer
        that made them; FailedPrecondition if it isn't the model's. Raises a PlauditError.

        >>> from plaudit import Reward, RewardClient
        >>> with RewardClient("127.0.0.1:50052") as client:
        ...     for result in client.score([("The film was", " a joy."), ("", "")]):
        ...         print(result.token_count > 0 if isinstance(result, Reward) else result.code)
        True
        INVALID_ARGUMENT
        """
        request = to_proto.score_request(items, all_or_nothing, tokenizer_sha256)
        return from_proto.scores(self._call(SCORE, request, timeout))

    def get_model(self, *, timeout: float | None = None) -> RewardInfo:
        """What is loaded, on one replica where there are several."""
        return from_proto.reward_info(self._call(GET_MODEL, GetModelRequest(), timeout))


class AsyncRewardClient(AsyncClient):
    """RewardClient to be awaited."""

    _service = "reward"

    async def score(
        self,
        items: Sequence[Scorable],
        *,
        all_or_nothing: bool = False,
        tokenizer_sha256: str = "",
        timeout: float | None = None,
    ) -> Scores:
        """As RewardClient.score."""
        request = to_proto.score_request(items, all_or_nothing, tokenizer_sha256)
        return from_proto.scores(await self._call(SCORE, request, timeout))

    async def get_model(self, *, timeout: float | None = None) -> RewardInfo:
        """As RewardClient.get_model."""
        return from_proto.reward_info(await self._call(GET_MODEL, GetModelRequest(), timeout))
