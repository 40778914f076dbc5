"""The reward service as the gateway calls it: each call in the name of the HTTP request that it answers."""

import time
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from grpc_health.v1.health_pb2 import (  # type: ignore[import-untyped]
    HealthCheckRequest,
    HealthCheckResponse,
)

from plaudit.clients import AsyncRewardClient, PlauditError, Unavailable
from plaudit.clients.channel import Method, RequestT, ResponseT
from plaudit.clients.reward import SERVICE
from plaudit.clients.tries import Tries
from plaudit.health import CHECK
from plaudit.v1.reward_pb2 import CompareResponse, RankResponse, ScoreResponse
from services.rpc.quotas import pay

CHECK_TIMEOUT_S = 2.0
MAX_IN_FLIGHT = 1 << 16
"""No call waits for its turn here, where all callers look alike: the service has a queue that knows them."""


@dataclass(frozen=True)
class OnBehalf:
    """Who a request comes from, and until when its answer is of use."""

    caller: str
    request_id: str
    authorization: str
    """The header as the caller sent it; the gateway's own where it has asked who calls."""
    deadline: float
    """In `time.monotonic()` seconds."""

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What the reward service is told."""
        told = [("x-request-id", self.request_id), ("x-plaudit-caller", self.caller)]
        if self.authorization:
            told.append(("authorization", self.authorization))
        return tuple(told)


on_behalf: ContextVar[OnBehalf] = ContextVar("on_behalf")
"""Set for as long as a request is answered."""


class Upstream(AsyncRewardClient):
    """AsyncRewardClient whose calls carry the name, token, request id and deadline of `on_behalf`."""

    _token_needs = "PLAUDIT_TLS_CA, or --insecure (PLAUDIT_INSECURE=1)"

    def __init__(
        self,
        addresses: list[str],
        token: str = "",
        insecure: bool = False,
        token_file: Path | None = None,
        *,
        passes_on: bool = False,
    ) -> None:
        """`token` is the gateway's own, or it `passes_on` those of callers.

        `token_file` holds it in its place, and is read again when it changes. Raises InvalidArgument for an
        address or file that can't be, and where tokens would go over the network in plaintext and that isn't
        said to be `insecure`.
        """
        self._passes_on = passes_on
        super().__init__(
            addresses,
            token=token if token_file is None else None,
            token_file=token_file,
            max_in_flight=MAX_IN_FLIGHT,
            insecure=insecure or None,
        )

    def _shows_tokens(self) -> bool:
        """Whether calls show any."""
        return self._passes_on or super()._shows_tokens()

    @property
    def authorization(self) -> str:
        """By which the gateway shows who it is itself."""
        token = self._token.now()
        return f"Bearer {token}" if token else ""

    async def _call(
        self,
        method: Method[RequestT, ResponseT],
        request: RequestT,
        timeout: float | None,  # noqa: ASYNC109
    ) -> ResponseT:
        """As AsyncClient._call; the caller's quota pays for what was read."""
        response = await super()._call(method, request, timeout)
        pay(token_count(response))
        return response

    def tries(self, method: Method[Any, Any], timeout: float | None) -> Tries:
        """As Connection.tries, ending at the request's deadline at the latest."""
        request = on_behalf.get()
        remaining = max(0.001, request.deadline - time.monotonic())
        attempts = [
            replace(
                attempt,
                where=replace(attempt.where, request_id=request.request_id),
                metadata=request.metadata(),
            )
            for attempt in super().tries(method, timeout).attempts
        ]
        seconds = remaining if timeout is None else min(timeout, remaining)
        return OneRound(attempts, seconds, method.idempotent, self._replicas)

    async def check_ready(self) -> None:
        """Returns when one of the addresses is ready to score; raises the last one's PlauditError."""
        failure: PlauditError = Unavailable("no address")
        question = HealthCheckRequest(service=SERVICE)
        for _ in self.addresses:  # calls take them in turn
            try:
                answer = await self._call(CHECK, question, CHECK_TIMEOUT_S)
            except PlauditError as error:
                failure = error
            else:
                if answer.status == HealthCheckResponse.SERVING:
                    return
                failure = Unavailable("the reward service is loading or draining")
        raise failure


def token_count(response: Message) -> int:
    """Tokens that the reward model has read for an answer."""
    match response:
        case ScoreResponse():
            rewards = [result.reward for result in response.results]
        case RankResponse():
            rewards = [candidate.reward for candidate in response.ranked]
        case CompareResponse():
            rewards = [response.first, response.second]
        case _:
            rewards = []
    return sum(reward.token_count for reward in rewards)


class OneRound(Tries):
    """Each address once: a caller of the gateway learns at once that all are full, and waits by itself."""

    def pause_after(self, failure: PlauditError) -> float | None:
        """As Tries.pause_after, but never waits."""
        pause = super().pause_after(failure)
        return None if pause else pause
