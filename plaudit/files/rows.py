"""One row of a file, and what of it is scored."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plaudit.clients import Chat, Scorable

FORMS = ("prompt", "response", "messages", "token_ids")
"""Columns that say what is scored; all others are only kept."""
_MAX_ID = 2**32 - 1
NEEDED = "prompt and response, or messages, or token_ids with --tokenizer-sha256"


class FileError(Exception):
    """A file can't be read or written as a whole; says what to do."""


class BadRow(Exception):
    """A row can't be scored; its neighbours can."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it was read."""

    line: int
    """Line it begins on, from 1; of a Parquet file, its number."""
    end: int
    """How much of the file is read with it, in the unit of the file's size."""
    columns: Mapping[str, Any]
    """Values by column; of a Parquet file only those of FORMS."""
    problem: str
    """Why it can't be read, empty if it can."""
    raw: Any
    """The row as its own format needs it to write it again."""


NO_ROW = Row(0, 0, {}, "", b"")
"""Stands among the rows of a pipe where none has come for a while."""


def item_of(row: Row, ids: bool, added: Sequence[str]) -> Scorable:
    """What to score: a pair before a conversation, and token ids before both if `ids` are asked for.

    `added` are the columns that the output gets. Raises BadRow.
    """
    if row.problem:
        raise BadRow(row.problem)
    columns = row.columns
    if taken := [name for name in added if name in columns]:
        raise BadRow(f"has a column {taken[0]!r}, which the score would replace; rename it")
    if ids and columns.get("token_ids") is not None:
        return _ids(_unpacked(columns, "token_ids"))
    if columns.get("prompt") is not None and columns.get("response") is not None:
        return _text(columns["prompt"], "prompt"), _text(columns["response"], "response")
    if columns.get("messages") is not None:
        return Chat(_messages(_unpacked(columns, "messages")))
    there = ", ".join(name for name, value in columns.items() if value is not None) or "nothing"
    raise BadRow(f"needs {NEEDED}; it has {there}")


def check_columns(names: Sequence[str], ids: bool, added: Sequence[str]) -> None:
    """For files whose columns are known before the first row. Raises FileError."""
    if taken := [name for name in added if name in names]:
        raise FileError(f"has a column {taken[0]!r} already, which the score would replace; rename it")
    if doubled := [name for name in names if names.count(name) > 1]:
        raise FileError(f"has two columns {doubled[0]!r}; rename one")
    if not ({"prompt", "response"} <= {*names} or "messages" in names or (ids and "token_ids" in names)):
        raise FileError(f"has the columns {', '.join(names) or 'of none'}; needed are {NEEDED}")


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{name} is {_kind(value)}; it must be text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{name} has no valid Unicode at character {error.start + 1}") from None
    return value


def _messages(value: object) -> list[tuple[str, str]]:
    if not isinstance(value, list):
        raise BadRow(f"messages is {_kind(value)}; it must be a list of {{role, content}}")
    return [_turn(turn, f"messages[{index}]") for index, turn in enumerate(value)]


def _turn(turn: object, name: str) -> tuple[str, str]:
    if not isinstance(turn, Mapping) or not {"role", "content"} <= turn.keys():
        raise BadRow(f"{name} must have role and content")
    return _text(turn["role"], f"{name}.role"), _text(turn["content"], f"{name}.content")


def _ids(value: object) -> list[int]:
    if not isinstance(value, list):
        raise BadRow(f"token_ids is {_kind(value)}; it must be a list of ids")
    for index, id_ in enumerate(value):
        if not isinstance(id_, int) or isinstance(id_, bool) or not 0 <= id_ <= _MAX_ID:
            shown = (
                repr(id_) if isinstance(id_, int | float) else _kind(id_)
            )  # nobody's text goes into a message
            raise BadRow(f"token_ids[{index}] is {shown}, no token id")
    return value


def _unpacked(columns: Mapping[str, Any], name: str) -> object:
    """Lists in a column of text, as CSV has them, are JSON."""
    value = columns[name]
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRow(f"{name} is text that is no JSON") from None


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case Mapping():
            return "an object"
    return f"of type {type(value).__name__}"
