"""Scores of any number of items over one stream, in order and in flat memory, blocking or awaited.

How much the server takes at once isn't asked: it stops reading when it has enough, and what then waits
here is bounded by the window.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue

import grpc

from plaudit.clients.budget import Budget
from plaudit.clients.data import Chat, Scorable
from plaudit.clients.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    PlauditError,
    Unauthenticated,
    Unavailable,
    from_rpc,
)
from plaudit.clients.flight import Endurance, Flight, Result
from plaudit.clients.streams import Event, OpenStream, ScoreStream
from plaudit.v1.reward_pb2 import ScoreStreamRequest, ScoreStreamResponse
from plaudit.v1.types_pb2 import ModelVersion

END_SECONDS = 1.0
"""How long a stream whose results are all there has to end."""
NOT_YET = Chat([])
"""Stands among the items where none has come for a while, so that results are given meanwhile."""
_NO_STREAM = 0


class _Scoring:
    """What both ways share: the items in flight, and the stream that is open, if one is.

    `first` is the first message of each stream, without items; `timeout` is how many seconds without
    any result are borne.
    """

    def __init__(
        self, open_stream: OpenStream, first: ScoreStreamRequest, window: int, timeout: float
    ) -> None:
        self._open_stream = open_stream
        self._first = first
        self._flight = Flight(window)
        self._endurance = Endurance(timeout)
        self._stream: ScoreStream | None = None
        self._digests: tuple[str, str] | None = None
        self._is_more = True
        self._stopped_by: Exception | None = None

    def _take(self, item: Scorable) -> None:
        message = self._flight.add(item)
        if message is not None and self._stream:
            self._stream.send(message)

    def _took_all(self, stopped_by: Exception | None = None) -> None:
        """No item will come any more; what came before is still answered, then `stopped_by` is raised."""
        self._is_more, self._stopped_by = False, stopped_by
        if self._stream:
            self._stream.end()

    def _send_unanswered(self, stream: ScoreStream) -> None:
        """For the first time or again, over a stream that was just opened."""
        self._stream = stream
        for message in self._flight.unanswered:
            stream.send(message)
        if not self._is_more:
            stream.end()

    def _handle(self, stream: ScoreStream, event: Event) -> Iterator[float]:
        """Takes the event; gives the pauses before another stream, if it broke. Raises what ends it all."""
        if isinstance(event, ScoreStreamResponse):
            self._refuse_another_model(stream, event.model)
            self._flight.answer(event.results)
            self._endurance.renew()
            stream.has_answered = True
            stream.opened.note(None)
            return
        self._close()
        if not self._flight.is_waiting:
            return  # nothing was lost; the next item opens another
        failure = self._failure(stream, event)
        if stream.has_answered and isinstance(failure, DeadlineExceeded):
            return  # its own end, which says nothing of the address; another goes on
        stream.opened.note(failure)
        if isinstance(failure, Unauthenticated) and stream.opened.is_outdated():
            return  # a stream keeps its token; that has been rotated, and the next shows the new one
        yield from self._pauses(stream.opened.budget, failure, event)

    def _pauses(self, budget: Budget, failure: PlauditError, error: grpc.RpcError | None) -> Iterator[float]:
        """Until another stream may be opened; in an outage all streams of a client together do so seldom."""
        is_away = isinstance(failure, Unavailable)
        if is_away and self._endurance.is_in_vain:
            budget.spend()
        while (pause := self._endurance.pause_after(failure)) is not None:
            self._endurance.spent += pause
            yield pause
            if not is_away or budget.has_some:
                return
        raise failure from error

    def _refuse_another_model(self, stream: ScoreStream, model: ModelVersion) -> None:
        """A stream that broke may go on at a service with other weights, whose rewards compare with none."""
        digests = (model.weights_sha256, model.tokenizer_sha256)
        self._digests = self._digests or digests
        if digests != self._digests:
            which = 0 if digests[0] != self._digests[0] else 1
            text = (
                f"{('weights', 'tokenizer')[which]} {digests[which][:12]} of {model.model_id!r} go on where "
                f"{self._digests[which][:12]} began; score all again, or give the addresses of one model"
            )
            raise FailedPrecondition(text, stream.opened.where)

    def _failure(self, stream: ScoreStream, ended_by: grpc.RpcError | None) -> PlauditError:
        opened = stream.opened
        if ended_by is None:
            return Unavailable("the stream ended before all items had their results", opened.where)
        return from_rpc(ended_by, opened.where, opened.is_connected, self._endurance.spent)

    def _no_result(self, stream: ScoreStream) -> PlauditError:
        failure = DeadlineExceeded(f"no result within {self._endurance.timeout:.1f} s", stream.opened.where)
        stream.opened.note(failure)
        return failure

    def _close(self) -> None:
        if self._stream:
            self._stream.close()
        self._stream = None


class BlockingScoring(_Scoring):
    """Takes the items in its caller's thread, between the results."""

    def results(self, items: Iterable[Scorable]) -> Generator[Result, None, None]:
        """In the order of `items`. Closing the generator ends the stream."""
        source = iter(items)
        try:
            while True:
                while self._flight.is_ready:
                    yield self._flight.pop()
                if self._is_more and self._flight.has_room:
                    self._take_one(source)
                    self._receive(wait=False)
                elif self._flight.is_waiting:
                    self._receive(wait=True)
                elif not self._flight.is_ready:
                    break
            self._let_end()
        finally:
            self._close()
        if self._stopped_by:
            raise self._stopped_by

    def _take_one(self, source: Iterator[Scorable]) -> None:
        started = time.monotonic()
        try:
            item = next(source)
            if item is not NOT_YET:
                self._take(item)
            elif self._flight.is_waiting:
                self._endurance.spent += time.monotonic() - started
        except StopIteration:
            self._took_all()
        except Exception as error:
            self._took_all(error)

    def _receive(self, wait: bool) -> None:
        if self._flight.is_waiting and not self._stream:
            self._inbox: SimpleQueue[Event] = SimpleQueue()
            self._send_unanswered(ScoreStream(self._open_stream, self._first, self._inbox.put))
        while stream := self._stream:
            if not wait and self._inbox.empty() and self._endurance.left:
                return
            for pause in self._handle(stream, self._next_event(stream)):
                time.sleep(pause)
            wait = False

    def _next_event(self, stream: ScoreStream) -> Event:
        started = time.monotonic()
        try:
            return self._inbox.get(timeout=self._endurance.left)
        except Empty:
            raise self._no_result(stream) from None
        finally:
            self._endurance.spent += time.monotonic() - started

    def _let_end(self) -> None:
        """All is answered: the service sees a call that ended well, not one that was cancelled."""
        if self._stream:
            with suppress(Empty):
                self._inbox.get(timeout=END_SECONDS)


class AwaitedScoring(_Scoring):
    """Takes the items in a task of its own, and blocking ones between the turns of the event loop."""

    async def results(
        self, items: Iterable[Scorable] | AsyncIterable[Scorable]
    ) -> AsyncGenerator[Result, None]:
        """As BlockingScoring.results."""
        self._inbox: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._freed = asyncio.Event()
        self._number = 0
        taking = asyncio.create_task(self._take_all(_awaitable(items)))
        try:
            while self._is_more or self._flight.is_waiting or self._flight.is_ready:
                while self._flight.is_ready:
                    yield self._flight.pop()
                    self._freed.set()
                if self._is_more or self._flight.is_waiting:
                    await self._receive()
                    self._freed.set()
            await self._let_end()
        finally:
            taking.cancel()
            self._close()
            await asyncio.wait([taking])
        if self._stopped_by:
            raise self._stopped_by

    async def _take_all(self, source: AsyncIterator[Scorable]) -> None:
        try:
            while True:
                await self._room()
                item = await anext(source)
                was_waiting = self._flight.is_waiting
                self._take(item)
                if not was_waiting or self._flight.is_ready:
                    self._wake()
        except StopAsyncIteration:
            self._took_all()
        except Exception as error:
            self._took_all(error)
        self._wake()

    async def _room(self) -> None:
        """Returns when one more item may be taken."""
        while not self._flight.has_room:
            self._freed.clear()
            await self._freed.wait()

    def _wake(self) -> None:
        self._inbox.put_nowait((_NO_STREAM, None))

    async def _receive(self) -> None:
        if self._flight.is_waiting and not self._stream:
            self._number += 1
            deliver = partial(_post, asyncio.get_running_loop(), self._inbox, self._number)
            self._send_unanswered(ScoreStream(self._open_stream, self._first, deliver))
        number, event = await self._next_event()
        if self._stream and number == self._number:
            for pause in self._handle(self._stream, event):
                await asyncio.sleep(pause)

    async def _next_event(self) -> tuple[int, Event]:
        """Without a time limit while nothing is in flight: it's the items that are waited for."""
        if not self._stream or not self._flight.is_waiting:
            return await self._inbox.get()
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._endurance.left):
                return await self._inbox.get()
        except TimeoutError:
            if self._inbox.empty():  # else it was the event loop that had no time
                raise self._no_result(self._stream) from None
            return self._inbox.get_nowait()
        finally:
            self._endurance.spent += time.monotonic() - started

    async def _let_end(self) -> None:
        """As BlockingScoring._let_end."""
        if self._stream:
            with suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    while (await self._inbox.get())[0] != self._number:
                        pass


def _post(
    loop: asyncio.AbstractEventLoop, inbox: asyncio.Queue[tuple[int, Event]], number: int, event: Event
) -> None:
    with suppress(RuntimeError):  # the loop is closed; nobody waits any more
        loop.call_soon_threadsafe(inbox.put_nowait, (number, event))


async def _awaitable(items: Iterable[Scorable] | AsyncIterable[Scorable]) -> AsyncIterator[Scorable]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
            await asyncio.sleep(0)  # other tasks have their turn
