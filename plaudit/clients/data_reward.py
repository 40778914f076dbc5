"""What the reward clients take and give, beside what all clients share (data.py)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict, overload

from plaudit.clients.data import CallLimits, DType, ModelVersion, QueueDepth
from plaudit.clients.errors import ItemFailure, PlauditError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Truncation: TypeAlias = Literal["error", "left", "right"]
"""What becomes of an item with more tokens than the model reads: it fails, or loses its first or last."""
Priority: TypeAlias = Literal["low", "normal", "high"]
"""A quarter of the normal share of a busy model, the normal one, or four times that."""
Combination: TypeAlias = Literal["mean", "min", "mean_minus_std", "weighted_sum", "unspecified"]


class ScoreOptions(TypedDict, total=False):
    """How items are scored; all may be left out."""

    model: str
    """Which model of the server, by the name in list_models; the first one if left out."""
    truncation: Truncation
    """"error" if left out."""
    priority: Priority
    """"normal" if left out."""
    include_components: bool
    """Also return every member of an ensemble, or every attribute of a model with several."""
    deterministic: bool
    """Make the call a batch of its own: the same call to the same weights then gives the same bits."""


@dataclass(frozen=True)
class RewardComponent:
    """The part of one ensemble member, or of one attribute, in a score."""

    name: str
    raw_reward: float
    """Its output as it is."""
    reward: float
    """As it enters the combination: a member's normalised by its own statistics, an attribute's raw."""


@dataclass(frozen=True)
class Reward:
    """The score of one item."""

    raw_reward: float
    """The model's output as it is; of an ensemble, its members' rewards combined."""
    reward: float
    """(raw_reward − reward_mean) / reward_std: what PPO uses."""
    token_count: int
    """Tokens that the model read."""
    truncated_tokens: int = 0
    """Tokens that were cut off; 0 if the item was read whole."""
    truncation: Literal["left", "right"] | None = None
    """The side they were cut off."""
    components: tuple[RewardComponent, ...] = ()
    """In the order of RewardInfo.components; only if they were asked for."""


@dataclass(frozen=True)
class Timing:
    """Where the time went, on the server; of the item that was done last."""

    tokenize_seconds: float
    queue_seconds: float
    compute_seconds: float


@dataclass(frozen=True)
class Scores(Sequence[Reward | ItemFailure]):
    """One result per item, in the order of the items: a Reward, or the ItemFailure that says why not."""

    results: tuple[Reward | ItemFailure, ...]
    model: ModelVersion
    timing: Timing

    @property
    def rewards(self) -> "NDArray[np.float32]":
        """[B] normalised rewards, for callers who want all or none.

        Raises the first item's failure as a PlauditError.
        """
        import numpy as np  # as in data.py

        failed = next((result for result in self.results if isinstance(result, ItemFailure)), None)
        if failed:
            raise PlauditError.of_item(failed)
        return np.array([r.reward for r in self.results if isinstance(r, Reward)], dtype=np.float32)

    @overload
    def __getitem__(self, index: int) -> Reward | ItemFailure: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Reward | ItemFailure, ...]: ...
    def __getitem__(self, index: int | slice) -> Reward | ItemFailure | tuple[Reward | ItemFailure, ...]:
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[Reward | ItemFailure]:
        return iter(self.results)


@dataclass(frozen=True)
class RankedCandidate:
    """One candidate in the order."""

    index: int
    """Its place in the candidates as they were given."""
    rank: int
    """1 for the best. Equals share a rank, and the one after k of them ranks k lower."""
    reward: Reward


@dataclass(frozen=True)
class UnrankedCandidate:
    """A candidate that has no score and so no rank."""

    index: int
    failure: ItemFailure


@dataclass(frozen=True)
class Ranking:
    """Candidates in order."""

    ranked: tuple[RankedCandidate, ...]
    """Best first, equals as they were given; at most top_n."""
    unranked: tuple[UnrankedCandidate, ...]
    """Those without a score, as they were given."""
    model: ModelVersion
    timing: Timing


@dataclass(frozen=True)
class Comparison:
    """Which of two responses is preferred."""

    probability: float
    """That the first is: 1 / (1 + exp(−(first.raw_reward − second.raw_reward) / temperature))."""
    temperature: float
    """The one that was used."""
    first: Reward
    second: Reward
    model: ModelVersion
    timing: Timing


@dataclass(frozen=True)
class ComponentInfo:
    """A member of an ensemble, or an attribute of a model with several."""

    name: str
    weight: float
    """What its output is multiplied by in a weighted sum; 1 in an ensemble."""
    model: ModelVersion | None
    """The member's own weights; None for an attribute."""


@dataclass(frozen=True)
class RewardInfo:
    """A reward model that is loaded."""

    model: ModelVersion
    dtype: DType
    vocabulary_size: int
    context_length: int
    """Most tokens of an item."""
    reward_mean: float
    reward_std: float
    has_chat_template: bool
    limits: CallLimits
    """Of one call, or one message of a stream."""
    name: str
    """On its server."""
    stream_window: int
    """Most items that one stream has in flight."""
    compare_temperature: float
    """What compare uses unless told otherwise."""
    combination: Combination
    """How the components make one reward; "unspecified" for a model that has only one number."""
    deviation_factor: float
    """The k of mean_minus_std; 0 otherwise."""
    components: tuple[ComponentInfo, ...]
    """None for a plain model."""
    queue: QueueDepth


@dataclass(frozen=True)
class ListedModel:
    """One model of a server."""

    name: str
    """To ask for it by."""
    model: ModelVersion
    queue: QueueDepth
