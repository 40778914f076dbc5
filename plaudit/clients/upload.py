"""The bytes of a push on their way, over streams that break."""

import random
import time
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from plaudit.clients import to_proto
from plaudit.clients.errors import InvalidArgument, PlauditError, Unavailable
from plaudit.clients.to_proto import CHUNK_BYTES
from plaudit.v1.weights_pb2 import BeginPushResponse, GetPushRequest, GetPushResponse, PushChunksRequest

Pieces: TypeAlias = Iterable[bytes | memoryview]
"""The bytes of the tensors, in the manifest's order; little-endian, row-major, cut as you like. What is
iterated again, to go on after a break, starts again: a list does, a generator doesn't and is refused."""

MOST_FRUITLESS = 6
"""Breaks in a row without a byte that arrives in between."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0


class Upload:
    """Where a push that was opened stands."""

    def __init__(self, opened: BeginPushResponse, pieces: Pieces, seconds: float) -> None:
        """`seconds` is how long all streams together may take."""
        self.where = GetPushRequest(push_id=opened.push_id)
        """Asks how far it is."""
        self._pieces = pieces
        self._received, self._total = opened.received_bytes, opened.total_bytes
        self._end = time.monotonic() + seconds
        self._fruitless = 0
        self.broken = False
        """Whether it must be asked how far it is before it goes on."""
        self.done = self._received == self._total
        """Whether there is nothing left to send."""

    @property
    def left(self) -> float:
        """Seconds that are left, for one more call."""
        return max(0.001, self._end - time.monotonic())

    def chunks(self) -> Iterator[PushChunksRequest]:
        """What the server doesn't have."""
        return to_proto.chunk_requests(self.where.push_id, self._pieces, CHUNK_BYTES, self._received)

    def bear(self, failure: PlauditError) -> float:
        """Seconds to wait before it goes on after a break. Raises `failure` if it can't, or shouldn't."""
        pause = min(FIRST_PAUSE * 2.0**self._fruitless, LONGEST_PAUSE) * random.uniform(0.5, 1)
        self._fruitless += 1
        if not _is_break(failure) or self._fruitless > MOST_FRUITLESS or pause >= self.left:
            raise failure
        self.broken = True
        return pause

    def go_on_at(self, push: GetPushResponse) -> None:
        """Goes on with what the server doesn't have."""
        self.broken = False
        if push.received_bytes > self._received:
            self._received, self._fruitless = push.received_bytes, 0
        self.done = self._received == self._total


def check_pieces(pieces: Pieces) -> None:
    """Raises InvalidArgument for an iterator, which gives its items only once."""
    if iter(pieces) is pieces:
        text = "is an iterator and can't start again after a break; give a list, or an object with __iter__"
        raise InvalidArgument.at("pieces", text)


def _is_break(failure: PlauditError) -> bool:
    """Whether the connection was lost; or the stream before, which still brought bytes meanwhile."""
    return isinstance(failure, Unavailable) or any(each.kind == "OFFSET" for each in failure.preconditions)
