"""One ScoreStream call: reads while there is room, answers as results come."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial

from plaudit.v1 import reward_pb2
from services.errors import InvalidInput, NotServing, Overloaded
from services.reward import answers, convert
from services.reward.interface import Options, Outcome, Pending, RewardModel, Timing
from services.reward.items import Item
from services.reward.models import STREAM_WINDOW, RewardModels
from services.rpc.readable import request_size
from services.rpc.silent import owes

MOST_RESULTS = 256
"""Results in one message."""


class ScoreStreamCall:
    """Holds what is in flight: items that were read and whose results haven't been sent."""

    def __init__(
        self,
        models: RewardModels,
        make_options: Callable[[reward_pb2.ScoreOptions], Options],
        count: Callable[[Sequence[Outcome]], None],
        closing: asyncio.Event,
    ) -> None:
        """`count` hears of every outcome; once `closing` is set nothing more is read."""
        self._models = models
        self._make_options = make_options
        self._count = count
        self._closing = closing
        self._model: RewardModel
        self._options: Options
        self._tokenizer_sha256 = ""
        self._with_components = False
        self._in_flight: dict[str, Pending] = {}
        self._done: asyncio.Queue[str | None] = asyncio.Queue()
        self._sent = asyncio.Event()

    async def run(
        self, requests: AsyncIterator[reward_pb2.ScoreStreamRequest]
    ) -> AsyncIterator[reward_pb2.ScoreStreamResponse]:
        """The responses. Ends when all that was sent is answered; raises what is wrong with the stream.

        Raises NotServing, once what is in the queue is answered, when the server shuts down: the rest, such
        as what is just being tokenised, is for another server.
        """
        owes.set(lambda: bool(self._in_flight))
        reading = asyncio.create_task(self._read(requests))
        closing = asyncio.create_task(self._closing.wait())
        for task in (reading, closing):
            task.add_done_callback(lambda _: self._done.put_nowait(None))
        try:
            while self._in_flight or not (reading.done() or closing.done()):
                finished = await self._next_finished()
                if closing.done():
                    reading.cancel()
                elif reading.done():
                    reading.result()
                if finished:
                    yield self._response(finished)
                    self._sent.set()
            if not reading.done() or reading.cancelled():
                raise NotServing("the server is shutting down")
            reading.result()
        finally:
            reading.cancel()
            closing.cancel()
            for pending in self._in_flight.values():
                pending.future.cancel()

    async def _next_finished(self) -> list[str]:
        """Ids whose results are there; waits for one, or for the end of reading."""
        found = [await self._done.get()]
        while len(found) < MOST_RESULTS and not self._done.empty():
            found.append(self._done.get_nowait())
        return [item_id for item_id in found if item_id is not None]

    async def _read(self, requests: AsyncIterator[reward_pb2.ScoreStreamRequest]) -> None:
        first = True
        async for request in requests:
            if first:
                self._open(request)
                first = False
            if request.items:
                await self._begin(request)

    def _open(self, request: reward_pb2.ScoreStreamRequest) -> None:
        self._model = self._models.get(request.options.model)
        self._options = self._make_options(request.options)
        self._tokenizer_sha256 = request.tokenizer_sha256
        self._with_components = request.options.include_components

    async def _begin(self, request: reward_pb2.ScoreStreamRequest) -> None:
        """Puts the items of a message in the queue, once there is room for them."""
        limits = self._models.limits
        items = convert.stream_items(request, self._tokenizer_sha256, self._model.facts, limits)
        if len(items) > STREAM_WINDOW:
            raise InvalidInput.at(
                "items",
                f"holds {len(items)} items, more than the stream's window of {STREAM_WINDOW}; split it",
            )
        while len(self._in_flight) + len(items) > STREAM_WINDOW:
            self._sent.clear()
            await self._sent.wait()
        self._check_ids(request)
        for one, pending in zip(request.items, await self._enqueue(items), strict=True):
            self._in_flight[one.item_id] = pending
            pending.future.add_done_callback(partial(self._finished, one.item_id))

    async def _enqueue(self, items: Sequence[Item | InvalidInput]) -> list[Pending]:
        """A full queue or quota makes a stream wait: its caller sees that it can't write; nothing is lost."""
        options = replace(self._options, size=request_size.get())
        while True:
            await self._model.wait_for_room(len(items), options)
            try:
                self._model.admit(len(items), options)
                return await self._model.begin(items, ["item"] * len(items), options)
            except Overloaded as error:  # of the caller's quota, or others were told to come before it
                await asyncio.sleep(error.retry_after)

    def _check_ids(self, request: reward_pb2.ScoreStreamRequest) -> None:
        seen: set[str] = set()
        for index, one in enumerate(request.items):
            if one.item_id in self._in_flight or one.item_id in seen:
                raise InvalidInput.at(
                    f"items[{index}].item_id", f"{one.item_id!r} is in flight already; give each its own"
                )
            seen.add(one.item_id)

    def _finished(self, item_id: str, _: object) -> None:
        self._done.put_nowait(item_id)

    def _response(self, finished: Sequence[str]) -> reward_pb2.ScoreStreamResponse:
        response = reward_pb2.ScoreStreamResponse(model=answers.model_version(self._model.facts))
        last = Timing()
        outcomes = []
        for item_id in finished:
            pending = self._in_flight.pop(item_id)
            answer = pending.finish(pending.future.result())
            outcomes.append(answer.outcome)
            last = max(last, answer.timing)
            result = answers.result(answer.outcome, self._with_components)
            response.results.add(item_id=item_id, result=result)
        response.timing.CopyFrom(answers.timing(last))
        self._count(outcomes)
        return response
