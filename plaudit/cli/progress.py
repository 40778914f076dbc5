"""How far a file is, on stderr."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from plaudit.files.rows import Row

_REDRAW_EVERY_S = 0.1


class RowProgress:
    """A bar with rows, rows a second and the time left; nothing at all if it isn't `shown`."""

    def __init__(self, size: int | None, shown: bool) -> None:
        """`size` is what Row.end comes to, None if nobody knows."""
        self._size = size
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[rows]:,} rows, {task.fields[rate]:,.0f} a second, left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
        )
        self._doing = ""
        self._task = TaskID(0)
        self._rows = self._end = 0
        self._began = self._drawn = 0.0

    def advance(self, doing: str, row: Row) -> None:
        """`row` is done; `doing` says what with it, and a new word is a new bar."""
        now = time.monotonic()
        if doing != self._doing:
            self._draw(now)
            self._doing, self._rows, self._began = doing, 0, now
            # What an earlier process did doesn't count for the time left.
            self._task = self._bar.add_task(doing, total=self._size, completed=row.end, rows=0, rate=0.0)
        self._rows, self._end = self._rows + 1, row.end
        if now - self._drawn > _REDRAW_EVERY_S:
            self._draw(now)

    def _draw(self, now: float) -> None:
        if self._doing:
            rate = self._rows / max(now - self._began, _REDRAW_EVERY_S)
            self._bar.update(self._task, completed=self._end, rows=self._rows, rate=rate)
        self._drawn = now

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw(time.monotonic())
        self._bar.stop()
