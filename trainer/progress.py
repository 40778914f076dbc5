"""What a person sees while a stage runs: bars with the time left on a terminal, plain lines elsewhere."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

T = TypeVar("T")
WORTH_TELLING_S = 2.0
LINE_EVERY_S = 10.0

console = Console(stderr=True)
logger = logging.getLogger(__name__)


class StepProgress:
    """The progress of `total` steps with a live line of metrics."""

    def __init__(
        self,
        description: str,
        total: int,
        done: int = 0,
        live: Console = console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`done` steps were taken by an earlier process, and don't count for the time left."""
        self._description, self._total, self._done = description, total, done
        self._clock = clock
        self._start, self._told, self._first = clock(), -LINE_EVERY_S, done
        self._terminal = live.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[line]}"),
            console=live, disable=not self._terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(description, total=total, completed=done, line="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, values: Mapping[str, float]) -> None:
        """One more step is done; `values` are what the live line shows."""
        self._done += 1
        line = "  ".join(f"{name} {_number(value)}" for name, value in values.items())
        self._bar.update(self._task, completed=self._done, line=line)
        now = self._clock()
        last = self._done == self._total
        if not self._terminal and (last or now - self._told >= LINE_EVERY_S):
            self._told = now
            left = "" if last else f", {_duration(self._left(now))} left"
            logger.info("%s %d/%d  %s%s", self._description, self._done, self._total, line, left)

    def _left(self, now: float) -> float:
        taken = self._done - self._first
        return (now - self._start) / taken * (self._total - self._done)


def track(items: Sequence[T], description: str, live: Console = console) -> Iterator[T]:
    """`items`, with a bar that shows where it is; on a plain log one line if it took long."""
    start = time.monotonic()
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=live, transient=True, disable=not live.is_terminal,
    ) as bar:  # fmt: skip
        yield from bar.track(items, description=description)
    _tell_if_long(description, start)


@contextmanager
def waiting(description: str, live: Console = console) -> Iterator[None]:
    """Something that can't say how far it is, such as loading a model."""
    start = time.monotonic()
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
        console=live, transient=True, disable=not live.is_terminal,
    ) as spinner:  # fmt: skip
        spinner.add_task(description, total=None)
        yield
    _tell_if_long(description, start)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on standard output; floats with four significant digits. No heading if all `columns` are ""."""
    table = Table(title=title, title_justify="left", show_header=any(columns))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*(_number(cell) if isinstance(cell, float) else str(cell) for cell in row))
    Console().print(table)


def _tell_if_long(description: str, start: float) -> None:
    seconds = time.monotonic() - start
    if seconds >= WORTH_TELLING_S:
        logger.info("%s: %s", description, _duration(seconds))


def _number(value: float) -> str:
    return f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
