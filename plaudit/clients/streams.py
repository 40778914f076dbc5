"""One stream of scores, from its first message to its last; it never keeps its caller waiting.

Threads of its own write and read: what is sent lies in a queue until the network takes it, and what
comes is handed on at once. Neither can grow beyond what the caller has in flight (flight.py).
"""

import atexit
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import TypeAlias, cast
from weakref import WeakSet

import grpc
import grpc.aio

from plaudit.clients.opened_stream import OpenedStream
from plaudit.v1.reward_pb2 import ScoreStreamRequest, ScoreStreamResponse, StreamItem

MESSAGE_ITEMS, MESSAGE_BYTES = 32, 256 * 1024
"""A message that has so much is full: few enough for any server's limits, even if each byte were a token."""
STREAM_SECONDS = 3600.0
"""A stream has a deadline like every call. What is under way when it passes is computed again, over another
stream, so it isn't short; a server that lost sight of its client is rid of the stream all the same."""
LAST_SECONDS = 1.0
"""How long the streams that are open when the interpreter ends have to end."""

Event: TypeAlias = ScoreStreamResponse | grpc.RpcError | None
"""Results; or the end of the stream, by an error or, None, in good order."""
OpenStream: TypeAlias = Callable[[Iterator[ScoreStreamRequest], float], OpenedStream[ScoreStreamResponse]]
"""By the messages to send and the seconds that it may last."""

_streams: "WeakSet[ScoreStream]" = WeakSet()
"""All that may be open."""


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
        self._reader = threading.Thread(
            target=self._read, args=(deliver,), name="plaudit-scores", daemon=True
        )
        self._reader.start()
        _streams.add(self)

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

    def join(self, timeout: float) -> None:
        """Waits until nothing more is delivered, for so many seconds at most."""
        self._reader.join(timeout)

    def _read(self, deliver: Callable[[Event], None]) -> None:
        try:
            for response in self.opened.responses:
                deliver(response)
        except grpc.RpcError as error:
            deliver(_without_call(error))
        else:
            deliver(None)


def _without_call(error: grpc.RpcError) -> grpc.RpcError:
    """What `error` says. It is the call itself, and would keep it as long as what is raised because of it."""
    error.__traceback__ = None  # its frames have the call, too
    trailers = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    nothing, told = grpc.aio.Metadata(), grpc.aio.Metadata(*trailers)
    return grpc.aio.AioRpcError(error.code(), nothing, told, error.details())


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


@atexit.register
def _end_streams() -> None:
    """Ends the streams that are open when the interpreter ends, and lets go of gRPC's calls.

    Later, when no other thread may run, one of gRPC's or ours may hold the lock of a call for ever; the
    interpreter, which would let go of the call then, would wait for that lock.
    """
    streams, end = list(_streams), time.monotonic() + LAST_SECONDS
    for stream in streams:
        stream.close()
    for stream in streams:
        stream.join(max(0.0, end - time.monotonic()))
        del stream.opened
