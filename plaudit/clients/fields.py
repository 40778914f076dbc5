"""Putting plain values into messages.

Raises InvalidArgument, naming the field, for a value that protobuf can't hold.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from reprlib import repr as short_repr
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from plaudit.clients import data
from plaudit.clients.errors import InvalidArgument
from plaudit.v1 import types_pb2

ValueT = TypeVar("ValueT")
ValueT_contra = TypeVar("ValueT_contra", contravariant=True)


def set_fields(message: Message, path: str, **fields: object) -> None:
    """Sets all of them; None is no value."""
    for name, value in fields.items():
        _hold(f"{path}{name}", partial(setattr, message, name), value)


def set_given(message: Message, path: str, **fields: object) -> None:
    """Sets those that aren't None."""
    set_fields(message, path, **{name: value for name, value in fields.items() if value is not None})


class _Repeated(Protocol[ValueT_contra]):
    def extend(self, values: Iterable[ValueT_contra], /) -> None: ...
    def append(self, value: ValueT_contra, /) -> None: ...


def extend(field: _Repeated[ValueT], path: str, values: Iterable[ValueT]) -> None:
    """Appends `values` to a repeated field."""
    try:
        field.extend(values)
    except (TypeError, ValueError):  # protobuf doesn't say which one it was
        for index, value in enumerate(values if isinstance(values, Iterable) else ()):
            _hold(f"{path}[{index}]", field.append, value)
        _hold(path, field.extend, values)


def enum_number(names: Mapping[int, str], path: str, name: str) -> int:
    """The number of an enumeration's value by its name here."""
    for number, known in names.items():
        if known == name:
            return number
    raise InvalidArgument.at(path, f"{name!r} is none of {', '.join(names.values())}")


def refuse_str(path: str, values: object) -> None:
    """Of all mistakes with lists the one that Python would take for a list of letters."""
    if isinstance(values, str):
        raise InvalidArgument.at(path, "a list, not one str; put it in brackets")


def fill_chat(message: types_pb2.Chat, path: str, chat: data.Chat) -> None:
    """Turn by turn."""
    message.SetInParent()
    try:
        turns = iter(chat.messages)
    except TypeError:
        kind = type(chat.messages).__name__
        raise InvalidArgument.at(f"{path}messages", f"a {kind} can't be sent here; give turns") from None
    for index, turn in enumerate(turns):
        where = f"{path}messages[{index}]"
        try:
            role, content = (turn["role"], turn["content"]) if isinstance(turn, Mapping) else turn
        except (KeyError, TypeError, ValueError):
            raise InvalidArgument.at(where, "write (role, content) or {'role': …, 'content': …}") from None
        set_fields(message.messages.add(), f"{where}.", role=role, content=content)


def _hold(path: str, put: Callable[[ValueT], object], value: ValueT) -> None:
    try:
        put(value)
    except (TypeError, ValueError) as error:
        raise InvalidArgument.at(path, _refused(value, error)) from None


def _refused(value: object, error: Exception) -> str:
    """Shows numbers; what somebody wrote is neither shown nor quoted."""
    match error:
        case UnicodeEncodeError():
            return f"can't be sent: no valid Unicode at character {error.start + 1}"
        case _ if value is None or isinstance(value, int | float):
            return f"{short_repr(value)} can't be sent: {error}"
    return f"a {type(value).__name__} can't be sent here"
