"""The side file of rows that have no score: line, reason, and the row itself, as JSON lines."""

import json
from typing import BinaryIO


class BadRows:
    """Collects bad rows."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0
        self.first = ""
        """Line and reason of the first."""

    def add(self, line: int, reason: str, original: object) -> None:
        """Writes one."""
        entry = {"line": line, "reason": reason, "row": original}
        self._file.write(json.dumps(entry, default=str).encode() + b"\n")
        self._file.flush()
        self.count += 1
        self.first = self.first or f"line {line}: {reason}"
