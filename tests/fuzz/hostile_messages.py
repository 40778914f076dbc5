"""Hypothesis strategies for messages of any descriptor: valid on the wire, hostile in what they say."""

import functools

from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor as Field
from hypothesis import strategies as st

TEXTS = (
    "",
    " ",
    "the film is",
    " good",
    "<|end|>",
    "<|start|>system\n",
    "\x00",
    "é\u202e\U0001f600",
    "../../etc/passwd",
    "x" * 700,
    "%s%n{0}{{ self }}",
    "\r\n HTTP/1.1 200",
)
COUNTS = (0, 1, 2, 3, 5, 17, 64, 127, 128, 129, 299, 300, 65_536, 2**31 - 1, 2**31, 2**32 - 1)
LONG_COUNTS = (*COUNTS, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1)
SIGNED = (0, 1, -1, 2, 300, -300, 2**31 - 1, -(2**31))
LONG_SIGNED = (*SIGNED, 2**63 - 1, -(2**63))
REALS = (0.0, -0.0, 1.0, 0.5, -1.0, 2.0, 1e-45, 1e-30, 1e-4, 3e38, float("nan"), float("inf"), float("-inf"))
LONG_REALS = (*REALS, 5e-324, 1e-300, 1.7e308)
_DEEPEST = 4

_SCALARS = {
    Field.TYPE_BOOL: st.booleans(),
    Field.TYPE_UINT32: st.sampled_from(COUNTS),
    Field.TYPE_UINT64: st.sampled_from(LONG_COUNTS),
    Field.TYPE_INT32: st.sampled_from(SIGNED),
    Field.TYPE_INT64: st.sampled_from(LONG_SIGNED),
    Field.TYPE_FLOAT: st.sampled_from(REALS),
    Field.TYPE_DOUBLE: st.sampled_from(LONG_REALS),
    Field.TYPE_BYTES: st.sampled_from([b"", b"\xff\xfe", b"\x03\x00\x00\x00abc", b"a" * 4096])
    | st.binary(max_size=16),
}


class Known(dict):
    """Values by field name that let a message get further in; hashable by identity, for the cache."""

    __hash__ = object.__hash__


def hostile(message_class, known):
    """Messages of the class."""
    return _message(message_class.DESCRIPTOR, known, _DEEPEST)


@st.composite
def spoilt(draw, good, known):
    """A good message of which one field, at any depth, is another."""
    message = type(good)()
    message.CopyFrom(good)
    _spoil(draw, message, known)
    return message


def _spoil(draw, message, known):
    inner = [each for field, value in message.ListFields() for each in _messages_in(field, value)]
    if inner and draw(st.booleans()):
        _spoil(draw, draw(st.sampled_from(inner)), known)
    elif message.DESCRIPTOR.fields:
        field = draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
        message.ClearField(field.name)
        message.MergeFrom(type(message)(**{field.name: draw(_field(field, known, 2))}))


def _messages_in(field, value):
    if field.message_type is None or field.message_type.GetOptions().map_entry:
        return []
    return value if field.is_repeated else [value]


@st.composite
def _message(draw, descriptor, known, depth):
    message = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        # More often there than not: most messages with half of their fields end at the first check.
        if draw(st.integers(0, 2)) and (values := _field(field, known, depth)) is not None:
            message.MergeFrom(type(message)(**{field.name: draw(values)}))
    return message


@functools.cache
def _field(field, known, depth):
    if field.message_type is not None and depth == 0:
        return None
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return _map(field.message_type, known, depth)
    single = _single(field, known, depth)
    if not field.is_repeated:
        return single
    return st.lists(single, max_size=4) | st.lists(single, min_size=1, max_size=1)


def _single(field, known, depth):
    if field.message_type is not None:
        return _message(field.message_type, known, depth - 1)
    if field.name in known:
        return st.sampled_from(known[field.name]) | _scalar(field)
    return _scalar(field)


def _scalar(field):
    if field.type == Field.TYPE_STRING:
        return st.sampled_from(TEXTS) | st.text(max_size=8)
    if field.type == Field.TYPE_ENUM:
        return st.sampled_from([*field.enum_type.values_by_number, 99, 2**31 - 1, -1])
    return _SCALARS[field.type]


def _map(entry, known, depth):
    key, value = (_single(entry.fields_by_name[name], known, depth - 1) for name in ("key", "value"))
    if value is None:
        return None
    return st.dictionaries(key, value, max_size=2)
