"""What people write, in the log: only where an operator asks for it by `--log-texts`."""

import logging
from collections.abc import Mapping, Sequence, Sized
from itertools import islice

from google.protobuf.message import Message

from services.rpc.calls import Call, CallInterceptor
from services.rpc.scopes import STANDARD

ANNOUNCEMENT = "--log-texts: prompts, responses and what faults say of them are in this log and in traces"
MOST_CHARACTERS = 500
"""Of a text that are shown."""
MOST_ITEMS = 16
"""Of a list that are shown."""
NO_TEXTS = ("plaudit.v1.WeightsService", "plaudit.v1.TrainerService")

log = logging.getLogger("services.rpc.texts")


class Texts(CallInterceptor):
    """A line for each message of a call, in and out. The innermost: what is refused before isn't shown."""

    def received(self, call: Call, request: object) -> None:
        """Shows a request."""
        _write("asked", call, request)

    def sent(self, call: Call, response: object) -> None:
        """Shows a response."""
        _write("answered", call, response)


def shown(value: object) -> object:
    """A message or a part of it, of bounded length: its `repr` is fit for one line of the log."""
    match value:
        case Message():
            return {field.name: shown(content) for field, content in value.ListFields()}
        case bytes():
            return shortened(value)
        case str():
            more = len(value) - MOST_CHARACTERS
            return f"{value[:MOST_CHARACTERS]}… {more} more characters" if more > 0 else value
        case Mapping():
            kept = {shown(key): shown(value[key]) for key in islice(value, MOST_ITEMS)}
            return kept | ({"…": _rest(value)} if len(value) > MOST_ITEMS else {})
        case Sequence():
            first = [shown(each) for each in value[:MOST_ITEMS]]
            return first + ([_rest(value)] if len(value) > MOST_ITEMS else [])
        case _:
            return value


def shortened(data: bytes, most: int = MOST_CHARACTERS) -> str:
    """The text in `data`, of which at most so many bytes are shown."""
    more = len(data) - most
    return data[:most].decode("utf-8", "replace") + (f"… {more} more bytes" if more > 0 else "")


def _rest(values: Sized) -> str:
    return f"… {len(values) - MOST_ITEMS} more"


def _write(verb: str, call: Call, message: object) -> None:
    if not call.service.startswith(STANDARD) and call.service not in NO_TEXTS:
        log.info("%s/%s %s %r", call.service, call.method, verb, shown(message))
