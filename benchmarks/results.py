"""What one run of the benchmark found; no torch here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.measures import Spread, paired_ratios, percentile


@dataclass(frozen=True)
class Settings:
    """How it was run."""

    model: str
    dtype: str
    threads: int
    texts: int
    rounds: int
    singles: int
    batch_size: int
    """Of the padded contestants."""
    seed: int


@dataclass(frozen=True)
class Passes:
    """One contestant over the same texts, once a round."""

    name: str
    note: str
    seconds: tuple[float, ...]
    difference: float
    """The largest between its scores and the first contestant's."""

    def rates(self, amount: int) -> list[float]:
        """Of `amount` texts or tokens, per second, in each round."""
        return [amount / seconds for seconds in self.seconds]

    def times_as_fast_as(self, other: "Passes") -> Spread:
        """By pairs of the same round."""
        return paired_ratios(self.rates(1), other.rates(1))


@dataclass(frozen=True)
class Padding:
    """Share of the computed tokens that is padding."""

    streamed: float
    sorted: float
    arrival: float


@dataclass
class Overhead:
    """Seconds of single items, text by text."""

    bare: list[float] = field(default_factory=list)
    """The model's forward over the text's ids, in this process."""
    called: list[float] = field(default_factory=list)
    """A Score call with the text, tokenising and the way there and back included."""

    @property
    def milliseconds(self) -> float:
        """The p50 of what a call takes longer than the bare forward of the same text."""
        pairs = zip(self.called, self.bare, strict=True)
        return median(called - bare for called, bare in pairs) * 1000


@dataclass(frozen=True)
class UnderLoad:
    """Single items while a bulk caller keeps the server full."""

    calls: list[float]
    """Seconds of each call."""
    batches: Sequence[float]
    """Seconds that the bulk caller's batches took to compute before, by the service's own account."""

    @property
    def ratio(self) -> float:
        """The p99 of calls over the bulk caller's median batch."""
        return percentile(self.calls, 0.99) / median(self.batches)


@dataclass(frozen=True)
class Results:
    """All of it. Of `passes` the sorted loop comes first, the padded one second, our stream third."""

    settings: Settings
    lengths: Sequence[int]
    """Tokens of each text."""
    passes: Sequence[Passes]
    padding: Padding
    overheads: Sequence[Overhead]
    """Of each round."""
    under_load: UnderLoad

    @property
    def loop(self) -> Passes:
        """The sorted loop."""
        return self.passes[0]

    @property
    def padded(self) -> Passes:
        """The padded loop."""
        return self.passes[1]

    @property
    def stream(self) -> Passes:
        """Ours."""
        return self.passes[2]
