"""CSV with a header. A scored row is the text as it was, byte for byte, with the new values behind it."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from plaudit.files import lines
from plaudit.files.jsonl import SHOWN
from plaudit.files.rows import FileError, Row

_BOM = b"\xef\xbb\xbf"


class Csv:
    """Rows of a file whose first line names the columns; a quoted value may have line breaks in it."""

    def __init__(self, path: Path) -> None:
        """Reads the header. Raises FileError."""
        csv.field_size_limit(lines.MAX_LINE)
        self._path = path
        self.size = path.stat().st_size
        self.header, self.names = _header(_Tape(path))

    def rows(self, after: int = 0) -> Iterator[Row]:
        """Those that begin behind line `after`."""
        tape = _Tape(self._path)
        reader = csv.reader(tape, strict=True)
        next(reader)
        tape.take()
        for line, values, problem in _records(reader, tape):
            raw = tape.take()
            if line > after and (values or problem):
                yield self._row(line, tape.end, values, problem, raw)

    def original(self, row: Row) -> object:
        """The row as JSON, or its text where its values can't be told apart."""
        return row.columns or row.raw.decode("utf-8", "replace").rstrip("\r\n")

    def sink(self, file: BinaryIO, added: Sequence[str]) -> "CsvSink":
        """Writes the header with the columns `added` to `file`, then rows of this file."""
        return CsvSink(file, self.header, added)

    def _row(self, line: int, end: int, values: list[str], problem: str, raw: bytes) -> Row:
        if not problem and len(values) != len(self.names):
            problem = f"has {len(values)} values; the header names {len(self.names)} columns"
        columns = {} if problem else dict(zip(self.names, values, strict=True))
        return Row(line, end, columns, problem, raw)


class CsvSink:
    """Writes scored rows."""

    def __init__(self, file: BinaryIO, header: bytes, added: Sequence[str]) -> None:
        self._file, self._added = file, added
        self._append(header, added)

    def write(self, row: Row, values: Mapping[str, Any]) -> None:
        """Adds a row with its new values."""
        self._append(row.raw, [_cell(values[name]) for name in self._added])

    def close(self) -> None:
        """Everything is written already."""

    def _append(self, raw: bytes, new: Sequence[object]) -> None:
        kept = raw.rstrip(b"\r\n")
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(new)
        self._file.write(kept + b"," + text.getvalue().encode() + (raw[len(kept) :] or b"\n"))


class _Tape:
    """Lines of a file as text, with what was read of it since the last look."""

    def __init__(self, path: Path) -> None:
        self._lines = lines.lines_of(path)
        self._read = bytearray()
        self.line = 0
        self.end = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw, length = next(self._lines)
        if not self.line:
            raw = raw.removeprefix(_BOM)
        self.line += 1
        self.end += length
        if len(self._read) + length > lines.MAX_LINE:  # also a quote that is never closed ends somewhere
            self._read += raw[:SHOWN]
            raise csv.Error(f"its record is longer than {lines.MAX_LINE:,} bytes at line {self.line}")
        self._read += raw
        return raw.decode("utf-8", "surrogateescape")  # a byte that is no UTF-8 spoils a value, not the file

    def take(self) -> bytes:
        """What was read since the last time."""
        taken = bytes(self._read)
        self._read.clear()
        return taken


def _header(tape: _Tape) -> tuple[bytes, list[str]]:
    try:
        names = next(csv.reader(tape, strict=True), [])
    except csv.Error as error:
        raise FileError(f"has no header that can be read: {error}") from None
    if not names:
        raise FileError("is empty or begins with an empty line; the first line must name the columns")
    return tape.take(), names


def _records(reader: Iterator[list[str]], tape: _Tape) -> Iterator[tuple[int, list[str], str]]:
    """(first line, values, problem) of each record; what breaks one doesn't break the next."""
    while True:
        line = tape.line + 1
        try:
            yield line, next(reader), ""
        except StopIteration:
            return
        except csv.Error as error:
            yield line, [], f"is no CSV: {error}"


def _cell(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
