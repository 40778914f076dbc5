"""What every contestant is; no torch here."""

from collections.abc import Sequence
from typing import Protocol

from benchmarks.workload import Text


class Contestant(Protocol):
    """A way to score texts."""

    name: str
    """As in the table."""
    note: str
    """What a reader must know of it."""

    def score(self, texts: Sequence[Text]) -> list[float]:
        """Raw scores in the order of `texts`."""
        ...
