"""Which format a file has, and what all formats can do."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from plaudit.files import Format
from plaudit.files.csv_rows import Csv
from plaudit.files.jsonl import JsonLines
from plaudit.files.parquet import Parquet
from plaudit.files.rows import FileError, Row, check_columns

SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}


_READERS: dict[Format, Callable[[Path], "Source"]] = {"jsonl": JsonLines, "csv": Csv, "parquet": Parquet}


class Sink(Protocol):
    """Where scored rows go."""

    def write(self, row: Row, values: Mapping[str, Any]) -> None:
        """Adds a row of the source with the values of the columns that are new."""
        ...

    def close(self) -> None:
        """Writes what waits; the file itself stays open."""
        ...


class Source(Protocol):
    """A file of rows."""

    @property
    def names(self) -> Sequence[str] | None:
        """Its columns; None where each row has its own."""
        ...

    @property
    def size(self) -> int | None:
        """What Row.end comes to; None if that isn't known before the end."""
        ...

    def rows(self, after: int = 0) -> Iterator[Row]:
        """Those whose line is above `after`."""
        ...

    def original(self, row: Row) -> object:
        """All of a row as plain values, or its text if it can't be read."""
        ...

    def sink(self, file: BinaryIO, added: Sequence[str]) -> Sink:
        """A writer of this file's rows with the columns `added` behind their own."""
        ...


def format_of(path: Path, given: Format | None, otherwise: Format | None = None) -> Format:
    """`given`, or what the suffix says, or `otherwise`. Raises FileError."""
    found = given or SUFFIXES.get(path.suffix.lower(), otherwise)
    if found is None:
        raise FileError(f"{path}: unknown suffix; name the format with --format {'|'.join(_READERS)}")
    return found


def open_source(path: Path, format_: Format, ids: bool, added: Sequence[str]) -> Source:
    """The rows of a file, checked as far as its header says; `ids` and `added` as in item_of.

    Raises FileError.
    """
    if not path.exists():
        raise FileError(f"{path}: no such file")
    if not path.is_file():
        raise FileError(f"{path}: no regular file, which can be read twice; pipe it in and write - for it")
    try:
        source = _READERS[format_](path)
        if source.names is not None:
            check_columns(source.names, ids, added)
    except FileError as error:
        raise FileError(f"{path}: {error}") from None
    return source
