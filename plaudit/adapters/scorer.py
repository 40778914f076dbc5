"""How the adapters ask for rewards: one client a process, and few calls for many items."""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self, TypeAlias, TypedDict, Unpack, cast, get_args

from plaudit.adapters.items import Text, scorable
from plaudit.clients import (
    InvalidArgument,
    ItemFailure,
    Overloaded,
    PlauditError,
    Reward,
    RewardClient,
    Scorable,
    Truncation,
    Unavailable,
)

CALL_ITEMS = 32
"""Most items that are collected into one call."""
PAUSE_S = 1.0
"""Before a service that is away is asked once more; until then the client has paced itself."""

Address: TypeAlias = str | Iterable[str]
"""host:port; of several replicas with commas, or as a list."""
Result: TypeAlias = Reward | ItemFailure

log = logging.getLogger("plaudit.adapters")


class ScorerOptions(TypedDict, total=False):
    """How a reward model is asked; all may be left out."""

    model: str
    """Which of the server's models: PLAUDIT_REWARD_MODEL unless given, or the server's default."""
    truncation: Truncation
    """What happens to items that are too long: PLAUDIT_REWARD_TRUNCATION unless given, or "error"."""
    timeout: float
    """Seconds without any result after which a call fails; 60 if left out."""
    patience: float
    """Seconds for which a service that is away or full is asked again and again; 300 if left out."""
    calls: int
    """Most calls at once of a process, each of up to CALL_ITEMS items that came singly; 4 if left out."""


@dataclass(frozen=True)
class Scorer:
    """Where a reward model is and how it is asked; the fields are those of ScorerOptions.

    It may be hashed and pickled. Connections belong to the process: each opens its own when it first
    scores, a forked one too, with PLAUDIT_TOKEN of its environment.
    """

    addresses: tuple[str, ...]
    model: str
    truncation: Truncation
    timeout: float = 60.0
    patience: float = 300.0
    calls: int = 4

    def __post_init__(self) -> None:
        RewardClient(self.addresses, timeout=self.timeout)  # refuses here what it couldn't use later
        if self.truncation not in get_args(Truncation):
            raise InvalidArgument.at(
                "truncation", f"{self.truncation!r} is none of {', '.join(get_args(Truncation))}"
            )
        if self.calls < 1:
            raise InvalidArgument.at("calls", f"{self.calls}; at least one call is made at once")

    @classmethod
    def of(cls, address: Address | None = None, **options: Unpack[ScorerOptions]) -> Self:
        """The scorer at `address`, else at PLAUDIT_REWARD. Raises InvalidArgument for what can't be."""
        given = os.environ.get("PLAUDIT_REWARD", "") if address is None else address
        addresses = [each.strip() for each in (given.split(",") if isinstance(given, str) else given)]
        if not any(addresses):
            raise InvalidArgument.at("address", "none given; write host:port, or set PLAUDIT_REWARD to it")
        options.setdefault("model", os.environ.get("PLAUDIT_REWARD_MODEL", ""))
        truncation = os.environ.get("PLAUDIT_REWARD_TRUNCATION", "error")
        options.setdefault("truncation", cast(Truncation, truncation))  # is checked above
        return cls(tuple(addresses), **options)

    def score(self, items: Sequence[Scorable]) -> list[Result]:
        """One result per item, for callers who have many at once. Raises PlauditError."""
        until = time.monotonic() + self.patience
        while True:
            try:
                return list(
                    self._opened.client.score_many(items, model=self.model, truncation=self.truncation)
                )
            except (Unavailable, Overloaded) as error:
                if (left := until - time.monotonic()) < PAUSE_S:
                    raise
                log.warning("%s; asking again for %.0f s", error, left)
                time.sleep(PAUSE_S)

    def submit(self, prompt: Text, response: str, empty_reward: float | None) -> Future[Result]:
        """The result for one response, for many callers who have one each. The future raises PlauditError.

        A response without text, which no model is asked about, has `empty_reward` and no tokens; where that
        is None, the service's failure. Raises InvalidArgument for a prompt that can't be.
        """
        if response or empty_reward is None:
            return self._opened.collector.submit(scorable(prompt, response, "item"))
        declared: Future[Result] = Future()
        declared.set_result(Reward(empty_reward, empty_reward, token_count=0))
        return declared

    @property
    def _opened(self) -> "_Opened":
        key = os.getpid(), self
        return _OPENED.get(key) or _OPENED.setdefault(key, _Opened(self))  # of two threads the first wins


def error_of(what: str, failure: ItemFailure) -> PlauditError:
    """The failure of one item as an exception that says `what` it was."""
    return PlauditError.of_item(replace(failure, message=f"{what} can't be scored: {failure.message}"))


class Collector:
    """Makes calls of many items out of items that come one by one, from any thread.

    At most `calls` run at once. Items that come meanwhile wait together for the next: the busier it is,
    the larger the calls, and an item that comes alone goes at once.
    """

    def __init__(self, score: Callable[[Sequence[Scorable]], Sequence[Result]], calls: int) -> None:
        self._score = score
        self._waiting: deque[tuple[Scorable, Future[Result]]] = deque()
        self._threads = ThreadPoolExecutor(calls, "plaudit-scorer")

    def submit(self, item: Scorable) -> Future[Result]:
        """The item's result, once there is one; a future that is cancelled before its call is left out."""
        future: Future[Result] = Future()
        self._waiting.append((item, future))
        self._threads.submit(self._call)
        return future

    def _call(self) -> None:
        batch = self._take()
        if not batch:
            return  # an earlier call took them along
        try:
            results = self._score([item for item, _ in batch])
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)

    def _take(self) -> list[tuple[Scorable, Future[Result]]]:
        taken: list[tuple[Scorable, Future[Result]]] = []
        while len(taken) < CALL_ITEMS:
            try:
                item, future = self._waiting.popleft()
            except IndexError:
                break
            if future.set_running_or_notify_cancel():
                taken.append((item, future))
        return taken


class _Opened:
    """What a process has open for a Scorer."""

    def __init__(self, scorer: Scorer) -> None:
        self.client = RewardClient(scorer.addresses, timeout=scorer.timeout)
        self.collector = Collector(scorer.score, scorer.calls)


_OPENED: dict[tuple[int, Scorer], _Opened] = {}
"""By process id too, so that a forked process never touches its parent's."""
