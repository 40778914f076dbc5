"""What a reward model is to those who call it, whether it is one network or several; asyncio, no gRPC."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from lm.errors import InputError
from services.errors import InvalidInput, ServiceError
from services.reward.items import Item, ModelFacts, Score, ScoreNotFinite

Combination = Literal["", "mean", "min", "mean_minus_std", "weighted_sum"]
TRUNCATIONS = ("error", "left", "right")
"""What may happen to an item that is too long: it is refused, or loses that side."""
Outcome = Score | InputError | ServiceError | ScoreNotFinite
"""What becomes of one item."""


@dataclass(frozen=True)
class Options:
    """How a caller wants its items scored."""

    truncation: str = "error"
    """One of TRUNCATIONS."""
    caller: str = ""
    weight: float = 1.0
    """The caller's share beside others'."""
    deadline: float | None = None
    """`time.monotonic()`"""
    deterministic: bool = False
    """In batches of its own."""
    size: int = 0
    """Bytes of the message that the items came in."""
    charge: Callable[[int], None] = lambda tokens: None
    """Hears of the tokens once there is room for them; may raise QuotaExceeded: then none is computed."""

    @property
    def who(self) -> tuple[str, float]:
        """Whose turns they are."""
        return self.caller, self.weight


@dataclass(frozen=True, order=True, slots=True)
class Timing:
    """Where an item's time went, in seconds; ordered by the last of its parts to begin."""

    queue: float = 0.0
    compute: float = 0.0
    tokenize: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An outcome and where its time went."""

    outcome: Outcome
    timing: Timing = Timing()


@dataclass(frozen=True, slots=True)
class Pending:
    """An item on its way: once `future` is done, `finish` makes its result an answer."""

    future: "asyncio.Future[Any]"
    finish: Callable[[Any], Answer]

    @classmethod
    def done(cls, answer: Answer) -> "Pending":
        """An item that needs no computing."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return cls(future, lambda _: answer)


@dataclass(frozen=True)
class Scored:
    """The outcomes of a call, in the order of its items."""

    outcomes: list[Outcome]
    timing: Timing = field(default_factory=Timing)
    """Of the item that was done last."""


@dataclass(frozen=True)
class ComponentFacts:
    """A member of an ensemble, or an attribute of a model with several."""

    name: str
    weight: float = 1.0
    facts: ModelFacts | None = None
    """Of a member."""


class RewardModel(Protocol):
    """A model by its name on this server."""

    name: str
    compare_temperature: float

    @property
    def facts(self) -> ModelFacts:
        """The loaded model."""
        ...

    @property
    def combination(self) -> Combination:
        """How components make one reward; empty for a plain model."""
        ...

    @property
    def deviation_factor(self) -> float:
        """The k of "mean_minus_std"; 0 otherwise."""
        ...

    @property
    def components(self) -> tuple[ComponentFacts, ...]:
        """What the reward is made of; nothing for a plain model."""
        ...

    @property
    def waiting_items(self) -> int:
        """Items that wait or run."""
        ...

    @property
    def waiting_tokens(self) -> int:
        """Their tokens."""
        ...

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the messages that they came in."""
        ...

    def admit(self, items: int, options: Options) -> None:
        """Decides about a call of so many items before any of its work; `begin` comes right after it.

        Raises Overloaded where the queue is full, or can't serve them within the deadline.
        """
        ...

    async def begin(
        self, items: Sequence[Item | InvalidInput], fields: Sequence[str], options: Options
    ) -> list[Pending]:
        """Tokenises the items, whose paths in the request are `fields`, and puts them in the queue.

        An item that came as an error stays one. Raises InvalidInput if the items have too many tokens
        together, Overloaded, TooLate.
        """
        ...

    async def wait_for_room(self, items: int, options: Options) -> None:
        """Returns when the queue would take so many more items."""
        ...


async def score(
    model: RewardModel, items: Sequence[Item | InvalidInput], fields: Sequence[str], options: Options
) -> Scored:
    """One outcome per item, in order. If one raises, or the caller is cancelled, the rest is withdrawn.

    Raises what `begin` raises, and what computing raises.
    """
    pending = await model.begin(items, fields, options)
    del items, fields  # thousands may wait, and no text of theirs is needed any more
    try:
        # One after the other: `gather` would add a callback and a context to what each takes while it waits.
        results = [await each.future for each in pending]
    finally:
        for each in pending:
            each.future.cancel()
    answers = [each.finish(result) for each, result in zip(pending, results, strict=True)]
    return Scored([answer.outcome for answer in answers], max(answer.timing for answer in answers))
