"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from plaudit.files.bad_rows import BadRows
from plaudit.files.rows import FileError


def check_outputs(*paths: Path) -> None:
    """Whether they can be written. Raises FileError."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise FileError(f"{paths[0]}: input, output and bad rows must be different files")
    for path in paths:
        if not path.parent.is_dir():
            raise FileError(f"{path}: there is no folder {path.parent}")
        if path.exists() and not path.is_file():
            raise FileError(f"{path}: no regular file; use -o - for a pipe")


def refuse_to_replace(*paths: Path) -> None:
    """Raises FileError if one is there already."""
    for path in paths:
        if path.exists():
            raise FileError(f"{path}: is there already; --restart scores anew and replaces it")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` once all is on the disk; not after an error."""
    partial = beside(path, ".partial")
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync_folder(path.parent)


@contextmanager
def bad_rows_at(path: Path) -> Iterator[BadRows]:
    """Bad rows that are written to `path`; where there were none, no file is left there."""
    partial = beside(path, ".partial")
    with partial.open("wb") as file:
        rows = BadRows(file)
        yield rows
        os.fsync(file.fileno())
    if rows.count:
        partial.replace(path)
    else:
        partial.unlink()
        path.unlink(missing_ok=True)
    _sync_folder(path.parent)


def beside(path: Path, suffix: str) -> Path:
    """`path` with `suffix` behind its whole name."""
    return Path(f"{path}{suffix}")


def _sync_folder(folder: Path) -> None:
    """The new name is on the disk too."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
