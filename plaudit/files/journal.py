"""What is scored of a file so far, in a file beside the output: the memory that outlives a kill.

Line 1 says what is scored with what, and each further line holds the result of one row, in the rows' order.
A line is handed to the system when it is written, so a killed process loses none; it is on the disk
(fsync) after five seconds, so a power cut loses five seconds of work. A torn last line is cut off.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Self

from plaudit.clients import ItemFailure, Reward, RewardComponent
from plaudit.files.rows import FileError

FSYNC_EVERY_S = 5.0


class Journal:
    """An open journal, locked against other processes."""

    def __init__(self, path: Path, facts: Mapping[str, str], restart: bool = False) -> None:
        """Makes the journal or goes on with it; `facts`, by what people call them, must be the same then.

        `restart` forgets what is in it. Raises FileError: another process has it, or other facts began it.
        """
        self.path = path
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        self._synced = time.monotonic()
        self.after = 0
        """Line of the last row that has a result; 0 at first."""
        self.count = 0
        """Rows that have a result."""
        try:
            self._open(facts, restart)
        except BaseException:
            self._file.close()
            raise

    def add(self, line: int, result: Reward | ItemFailure) -> None:
        """Remembers the result of the row on `line`, which is behind all others."""
        self._append([line, *_packed(result)])
        self.after, self.count = line, self.count + 1
        if time.monotonic() - self._synced > FSYNC_EVERY_S:
            self.sync()

    def sync(self) -> None:
        """Puts everything on the disk."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def results(self) -> Iterator[tuple[int, Reward | ItemFailure]]:
        """Line and result of each row, in order."""
        with self.path.open("rb") as file:
            for raw in islice(file, 1, self.count + 1):
                line, *packed = json.loads(raw)
                yield line, _unpacked(packed)

    def remove(self) -> None:
        """Forgets everything: the output is whole."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _open(self, facts: Mapping[str, str], restart: bool) -> None:
        self._lock()
        end = 0 if restart else self._read(facts)
        self._file.truncate(end)
        self._file.seek(end)
        if not end:
            self._append(dict(facts))

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileError(f"{self.path}: another plaudit score works on it now") from None

    def _read(self, facts: Mapping[str, str]) -> int:
        """Where the last good line ends."""
        first = self._file.readline()
        if not first.endswith(b"\n"):
            return 0
        self._check(first, facts)
        end = len(first)
        for raw in self._file:
            line = _line_of(raw)
            if line <= self.after:  # torn, or left empty by a power cut: so is all behind it
                return end
            self.after, self.count, end = line, self.count + 1, end + len(raw)
        return end

    def _check(self, first: bytes, facts: Mapping[str, str]) -> None:
        try:
            begun = dict(json.loads(first))
        except (ValueError, TypeError, RecursionError):
            raise FileError(f"{self.path}: no journal of plaudit score; move it away") from None
        for name in (*facts, *begun):
            if facts.get(name) != begun.get(name):
                raise FileError(
                    f"{self.path}: {name} was {begun.get(name)!r} when this began and is {facts.get(name)!r} "
                    "now; change it back, or begin anew with --restart"
                )

    def _append(self, value: object) -> None:
        self._file.write(json.dumps(value, separators=(",", ":")).encode() + b"\n")
        self._file.flush()


def _line_of(raw: bytes) -> int:
    """The line number of a whole line of the journal, else 0."""
    if not raw.endswith(b"\n"):
        return 0
    try:
        number, *packed = json.loads(raw)
        _unpacked(packed)
    except (ValueError, TypeError, RecursionError):
        return 0
    return number if isinstance(number, int) else 0


def _packed(result: Reward | ItemFailure) -> list[object]:
    if isinstance(result, ItemFailure):
        return [result.code, result.message]
    parts = [[part.name, part.raw_reward, part.reward] for part in result.components]
    return [result.raw_reward, result.reward, result.token_count, result.truncated_tokens, parts]


def _unpacked(packed: list[Any]) -> Reward | ItemFailure:
    if len(packed) == 2:
        return ItemFailure(*packed)
    raw_reward, reward, token_count, truncated_tokens, parts = packed
    components = tuple(RewardComponent(*part) for part in parts)
    return Reward(raw_reward, reward, token_count, truncated_tokens, components=components)
