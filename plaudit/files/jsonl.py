"""JSON lines. A scored row is the line as it was, byte for byte, with the new members behind its last one."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from plaudit.files import lines
from plaudit.files.rows import NO_ROW, Row

SHOWN = 1000
"""Bytes of a longer one that are kept."""
_BOM = b"\xef\xbb\xbf"


class JsonLines:
    """Rows of a file with a JSON object a line; blank lines are none."""

    names = None
    """Every row has columns of its own."""

    def __init__(self, source: Path | Iterable[lines.Line | None]) -> None:
        """A path can be read again and again, lines once; None among them becomes NO_ROW."""
        self._source = source
        self.size = source.stat().st_size if isinstance(source, Path) else None

    def rows(self, after: int = 0) -> Iterator[Row]:
        """Those on lines behind line `after`."""
        line = end = 0
        source = self._source
        for read in lines.lines_of(source) if isinstance(source, Path) else source:
            if read is None:
                yield NO_ROW
                continue
            raw, length = read
            line, end = line + 1, end + length
            if line > after and length > lines.MAX_LINE:
                yield Row(line, end, {}, f"is longer than {lines.MAX_LINE:,} bytes", raw[:SHOWN])
                continue
            stripped = (raw.removeprefix(_BOM) if line == 1 else raw).strip()
            if line > after and stripped:
                yield _row(line, end, stripped)

    def original(self, row: Row) -> object:
        """The row as JSON, or its text where it is none."""
        return row.columns or row.raw.decode("utf-8", "replace")

    def sink(self, file: BinaryIO, added: Sequence[str]) -> "JsonLinesSink":
        """Writes rows of this file to `file`; each brings the names of its columns, also those `added`."""
        return JsonLinesSink(file)


class JsonLinesSink:
    """Writes scored rows."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, row: Row, values: Mapping[str, Any]) -> None:
        """Adds a row with its new members."""
        new = json.dumps(values, ensure_ascii=False).encode()
        self._file.write(row.raw[:-1].rstrip() + b", " + new[1:] + b"\n")

    def close(self) -> None:
        """Everything is written already."""


def _row(line: int, end: int, raw: bytes) -> Row:
    columns: dict[str, Any] = {}
    problem = ""
    try:
        value = json.loads(raw.decode())
        if isinstance(value, dict):
            columns = value
        else:
            problem = "is no JSON object"
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        problem = f"is no JSON: {error.msg} (character {error.pos + 1})"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        problem = f"is no JSON that can be read: {error}"
    return Row(line, end, columns, problem, raw)
