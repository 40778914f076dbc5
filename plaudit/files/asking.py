"""Asks a reward model for the rows of a file."""

import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from plaudit.clients import (
    Aborted,
    DeadlineExceeded,
    ItemFailure,
    Overloaded,
    PlauditError,
    Reward,
    RewardClient,
    Scorable,
    ScoreOptions,
    Unavailable,
    Violation,
)
from plaudit.clients.score_many import NOT_YET
from plaudit.files.columns import added_columns
from plaudit.files.rows import NO_ROW, BadRow, Row, item_of

Result: TypeAlias = Reward | ItemFailure
_ABOVE_COLUMNS = re.compile(r"^(item(\.|$))?((pair|chat)(\.|$))?")
_PASSING = (Aborted, DeadlineExceeded, Overloaded, Unavailable)


@dataclass(frozen=True)
class Asking:
    """How rows are scored."""

    client: RewardClient
    options: ScoreOptions
    tokenizer_sha256: str
    """Digest of the tokenizer that made the token ids; empty where none are to be scored."""
    window: int
    """Most rows that are asked for at a time."""
    timeout: float
    """Seconds without any answer after which it ends."""

    @property
    def added(self) -> tuple[str, ...]:
        """The columns that rows get."""
        return added_columns(self.options)

    @property
    def ids(self) -> bool:
        """Whether token ids are scored where a row has them."""
        return bool(self.tokenizer_sha256)

    def item(self, row: Row) -> Scorable:
        """What of `row` is scored. Raises BadRow."""
        return item_of(row, self.ids, self.added)

    def results(
        self, rows: Iterable[Row], on_bad: Callable[[Row, str], None]
    ) -> Iterator[tuple[Row, Result]]:
        """The rows that can be asked for, in order, each with its result; at most a window of them is held.

        `on_bad` gets the others with the reason, when they are read. Raises a PlauditError.
        """
        asked: deque[Row] = deque()
        results = self.client.score_many(
            self._items(rows, asked, on_bad),
            window=self.window,
            tokenizer_sha256=self.tokenizer_sha256,
            timeout=self.timeout,
            **self.options,
        )
        for result in results:
            yield asked.popleft(), _checked(result)

    def _items(
        self, rows: Iterable[Row], asked: deque[Row], on_bad: Callable[[Row, str], None]
    ) -> Iterator[Scorable]:
        for row in rows:
            if row is NO_ROW:
                yield NOT_YET
                continue
            try:
                item = self.item(row)
            except BadRow as error:
                on_bad(row, str(error))
                continue
            asked.append(row)
            yield item


def _checked(result: Result) -> Result:
    """`result`, if it is the row's own; a reward that is no number is a failure.

    Raises a PlauditError for what isn't the row's fault and may be otherwise next time: nothing may be
    remembered of that.
    """
    if isinstance(result, Reward):
        if math.isfinite(result.reward) and math.isfinite(result.raw_reward):
            return result
        return ItemFailure("INTERNAL", f"the service sent {result.reward}, which is no reward")
    error = PlauditError.of_item(result)
    if isinstance(error, _PASSING):
        raise error
    return replace(result, message="; ".join(map(_of_row, result.violations)) or result.message)


def _of_row(violation: Violation) -> str:
    """In the row's own words: its column, not the field of the message that was made of it."""
    column = _ABOVE_COLUMNS.sub("", violation.field).replace("token_ids.ids", "token_ids")
    return f"{column}: {violation.description}" if column else violation.description
