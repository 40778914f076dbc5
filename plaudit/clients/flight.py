"""What a stream of scores has under way: bookkeeping, without a call being made."""

import random
from collections.abc import Iterable
from typing import TypeAlias

from plaudit.clients.channel import MAX_REQUEST_BYTES
from plaudit.clients.data import Scorable
from plaudit.clients.data_reward import Reward
from plaudit.clients.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ItemFailure,
    Overloaded,
    PlauditError,
    Unavailable,
)
from plaudit.clients.from_proto import score_result
from plaudit.clients.streams import MESSAGE_BYTES
from plaudit.clients.to_proto_reward import stream_item
from plaudit.v1.reward_pb2 import StreamItem, StreamResult

MAX_ITEM_BYTES = MAX_REQUEST_BYTES - 2 * MESSAGE_BYTES
MAX_WAITING_BYTES = 64 << 20
"""Of the items without a result: once they have so many, no more is taken."""
REOPENINGS = 20
"""Times in a row that a stream is opened again without a result in between."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 4.0
_WORTH_ANOTHER = (Unavailable, Overloaded, DeadlineExceeded)
"""Failures that another stream may not meet; the last is the end that every stream has."""

Result: TypeAlias = Reward | ItemFailure


class Flight:
    """Items by their number, from when they are taken until their result is given back, in order."""

    def __init__(self, window: int) -> None:
        """At most `window` items are here at once."""
        self._window = window
        self._taken = 0
        self._given = 0
        self._unanswered: dict[str, StreamItem] = {}
        self._waiting_bytes = 0
        self._done: dict[int, Result] = {}

    @property
    def has_room(self) -> bool:
        """Whether one more may be added."""
        return self._taken - self._given < self._window and self._waiting_bytes < MAX_WAITING_BYTES

    @property
    def unanswered(self) -> Iterable[StreamItem]:
        """Messages of the items without a result, in order."""
        return self._unanswered.values()

    @property
    def is_waiting(self) -> bool:
        """Whether there are items without a result."""
        return bool(self._unanswered)

    @property
    def is_ready(self) -> bool:
        """Whether the next result in order is here."""
        return self._given in self._done

    def add(self, item: Scorable) -> StreamItem | None:
        """The message to send; None for an item that can't be sent and so has its failure at once."""
        number, self._taken = self._taken, self._taken + 1
        try:
            message = _checked(stream_item(str(number), item))
        except InvalidArgument as error:
            self._done[number] = error.of_one_item()
            return None
        self._unanswered[message.item_id] = message
        self._waiting_bytes += message.ByteSize()
        return message

    def answer(self, results: Iterable[StreamResult]) -> None:
        """Raises Internal for a result of no item in flight: whose it is would be a guess."""
        for result in results:
            message = self._unanswered.pop(result.item_id, None)
            if message is None:
                raise Internal(f"the service sent a result for {result.item_id!r}, which isn't in flight")
            self._waiting_bytes -= message.ByteSize()
            self._done[int(result.item_id)] = score_result(result.result)

    def pop(self) -> Result:
        """The next result in order."""
        result = self._done.pop(self._given)
        self._given += 1
        return result


class Endurance:
    """How long the lack of results is borne: seconds of waiting, and streams that broke."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.renew()

    def renew(self) -> None:
        """There was a result."""
        self.spent = 0.0
        self._broken = 0

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.timeout - self.spent)

    @property
    def is_in_vain(self) -> bool:
        """Whether a stream was opened again since the last result."""
        return self._broken > 0

    def pause_after(self, failure: PlauditError) -> float | None:
        """Seconds until a stream is opened again; None if none shall be."""
        self._broken += 1
        if self._broken > REOPENINGS or not isinstance(failure, _WORTH_ANOTHER):
            return None
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (self._broken - 1))
        pause = (failure.retry_after or 0.0) + random.uniform(0.5, 1.0) * longest
        return pause if pause < self.left else None


def _checked(message: StreamItem) -> StreamItem:
    if (size := message.ByteSize()) > MAX_ITEM_BYTES:
        raise InvalidArgument.at("item", f"{size:,} bytes; at most {MAX_ITEM_BYTES:,} fit in a message")
    return message
