"""One stream of scores, from its first message to its last; it never keeps its caller waiting.

Threads of its own write and read: what is sent lies in a queue until the network takes it, and what
comes is handed on at once. Neither can grow beyond what the caller has in flight (flight.py).
"""

import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import TypeAlias

import grpc

from plaudit.clients.opened_stream import OpenedStream
from plaudit.v1.reward_pb2 import ScoreStreamRequest, ScoreStreamResponse, StreamItem

MESSAGE_ITEMS, MESSAGE_BYTES = 32, 256 * 1024
"""A message that has so much is full: few enough for any server's limits, even if each byte were a token."""
STREAM_SECONDS = 3600.0
"""A stream has a deadline like every call. What is under way when it passes is computed again, over another
stream, so it isn't short; a server that lost sight of its client is rid of the stream all the same."""

Event: TypeAlias = ScoreStreamResponse | grpc.RpcError | None
"""Results; or the end of the stream, by an error or, None, in good order."""
OpenStream: TypeAlias = Callable[[Iterator[ScoreStreamRequest], float], OpenedStream[ScoreStreamResponse]]
"""By the messages to send and the seconds that it may last."""


class ScoreStream:
    """`deliver` is called in a thread: with each response, then once with how the stream ended."""

    def __init__(
        self, open_stream: OpenStream, first: ScoreStreamRequest, deliver: Callable[[Event], None]
    ) -> None:
        """`first` has what counts in the first message only, and no items."""
        self._outbox: SimpleQueue[StreamItem | None] = SimpleQueue()
        self.opened = open_stream(_packed(self._outbox, first), STREAM_SECONDS)
        self.has_answered = False
        """Whether a result came; who takes them says so."""
        threading.Thread(target=self._read, args=(deliver,), name="plaudit-scores", daemon=True).start()

    def send(self, item: StreamItem) -> None:
        """Goes out with what else is there when the network takes it."""
        self._outbox.put(item)

    def end(self) -> None:
        """Nothing more will be sent; what was sent is still answered."""
        self._outbox.put(None)

    def close(self) -> None:
        """Ends the stream and its threads, whatever is in flight."""
        self.end()
        self.opened.cancel()

    def _read(self, deliver: Callable[[Event], None]) -> None:
        try:
            for response in self.opened.responses:
                deliver(response)
        except grpc.RpcError as error:
            deliver(error)
        else:
            deliver(None)


def _packed(
    outbox: SimpleQueue[StreamItem | None], first: ScoreStreamRequest
) -> Iterator[ScoreStreamRequest]:
    """What is in `outbox` as messages, until a None; waits for an item, never for a second one."""
    message = ScoreStreamRequest(options=first.options, tokenizer_sha256=first.tokenizer_sha256)
    while (item := outbox.get()) is not None:
        size = 0
        while item is not None:
            message.items.append(item)
            size += item.ByteSize()
            if len(message.items) >= MESSAGE_ITEMS or size >= MESSAGE_BYTES:
                break
            try:
                item = outbox.get_nowait()
            except Empty:
                break
        yield message
        if item is None:
            return
        message = ScoreStreamRequest()
