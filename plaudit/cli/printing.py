"""What commands print, for people and for programs."""

import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

WIDTH_OF_FILES = 160


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, default=plain, ensure_ascii=False, indent=2))


def print_table(table: "Table") -> None:
    """A table on stdout, whatever brackets its texts hold; wide where nobody's terminal ends."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDTH_OF_FILES
    Console(markup=False, emoji=False, highlight=False, width=width).print(table)


def local_time(moment: datetime | None) -> str:
    """A moment as people here write it."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S %Z}" if moment else "none yet"


def one_line(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.split())


def plain(value: object) -> object:
    """What JSON has for an array or a moment."""
    import numpy as np

    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form")
