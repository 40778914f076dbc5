"""metrics.jsonl: one line a step, none lost and none twice, whatever kills the process or fills the disk."""

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from trainer.disk import Disk
from trainer.outputs import write_text

FILE_NAME = "metrics.jsonl"


class MetricsFile:
    """The file of one run, open to be appended to."""

    def __init__(self, folder: Path, disk: Disk, until: int | None) -> None:
        """Begins anew for None; else what stands behind step `until` is cut off. Raises DiskUnusable."""
        self._path, self._disk = folder / FILE_NAME, disk
        self.kept: list[dict[str, Any]] = []
        """The lines that were there and stay."""
        if until is not None:
            self.kept = [line for line in read_lines(self._path) if line["step"] <= until]
        text = "".join(map(_line, self.kept))
        disk.write(self._path, len(text), lambda: write_text(self._path, text))
        self._file = self._path.open("ab", buffering=0)

    def append(self, values: Mapping[str, Any]) -> None:
        """Adds a line. Raises DiskUnusable."""
        data = _line(values).encode()
        self._disk.write(self._path, len(data), partial(self._append, data))

    def _append(self, data: bytes) -> None:
        """All or nothing: what a full disk took of it is cut off again."""
        end = self._file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            self._file.truncate(end)
            raise

    def sync(self) -> None:
        """Has the lines so far outlast the machine. Raises DiskUnusable."""
        self._disk.write(self._path, 0, lambda: os.fsync(self._file.fileno()))

    def close(self) -> None:
        """Nothing is appended any more."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last one that was cut off by a kill is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values) + "\n"
