"""A reward service whose streams do what a test tells them to, one after the other."""

import asyncio
import threading
from dataclasses import dataclass, field

import grpc
from scripted_servers import refuse

from plaudit import AsyncRewardClient, Reward, RewardClient
from plaudit.v1 import reward_pb2

GONE = refuse(grpc.StatusCode.UNAVAILABLE, "draining", pushback_ms=1)


def pairs(count, start=0):
    return [("p", f"{number}") for number in range(start, start + count)]


def expected(count, start=0):
    """What the peer says of pairs(count)."""
    return [Reward(number, number / 2, 1) for number in range(start, start + count)]


def scored(items):
    """A pair of a number's raw reward is that number."""
    response = reward_pb2.ScoreStreamResponse()
    for one in items:
        raw = float(one.item.pair.response)
        reward = reward_pb2.Reward(raw_reward=raw, reward=raw / 2, token_count=1)
        response.results.add(item_id=one.item_id, result=reward_pb2.ScoreResult(reward=reward))
    return response


@dataclass
class Streams:
    """Remembers the messages of each stream, and has behaviours for them."""

    heard: list = field(default_factory=list)
    """Per stream the list of its messages."""
    over: threading.Event = field(default_factory=threading.Event)
    ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released once for every stream that has ended, in whatever way."""
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def listen(self, requests, context):
        """The messages, each remembered when it comes."""
        messages = []
        self.heard.append(messages)
        context.add_callback(self.ended.release)
        for request in requests:
            with self.arrived:
                messages.append(request)
                self.arrived.notify_all()
            yield request

    def numbers(self, stream):
        """Of the items that came over a stream."""
        return [int(one.item.pair.response) for message in self.heard[stream] for one in message.items]

    def wait_for_items(self, count, stream=-1):
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.numbers(stream)) >= count, 30)

    def answer(self, requests, context):
        """A behaviour: answers at once."""
        for request in self.listen(requests, context):
            yield scored(request.items)

    def answer_backwards(self, requests, context):
        """A behaviour: answers the last item of a message first, one by one."""
        for request in self.listen(requests, context):
            for one in reversed(request.items):
                yield scored([one])

    def answer_at_the_end(self, requests, context):
        """A behaviour: answers when all items are there, the last one first."""
        for request in reversed(list(self.listen(requests, context))):
            yield scored(reversed(request.items))

    def never_answer(self, requests, context):
        """A behaviour: reads, and is silent until the test is over or the caller gone."""
        for _ in self.listen(requests, context):
            pass
        self.over.wait(30)
        return iter(())

    def answer_then(self, count, end, heard=0):
        """A behaviour: answers `count` items, one by one, then ends by `end`, or in good order.

        It waits for `heard` items in all: by more than its window a client shows that it has read results,
        which gRPC may drop when an error comes behind them.
        """

        def behave(requests, context):
            left, missing = count, heard
            for request in self.listen(requests, context):
                missing -= len(request.items)
                for one in request.items[:left]:
                    yield scored([one])
                left -= min(left, len(request.items))
                if not left and missing <= 0:
                    break
            if end:
                end(None, context)

        return behave


def score_many_sync(address, items, *, client=None, **named):
    """Yields what RewardClient.score_many gives."""
    with RewardClient(address, **(client or {})) as made:
        results = made.score_many(items, **named)
        try:
            yield from results
        finally:
            results.close()


def score_many_async(address, items, *, client=None, **named):
    """The same of AsyncRewardClient.score_many, in a loop of its own."""
    with asyncio.Runner() as runner:
        made = AsyncRewardClient(address, **(client or {}))
        try:
            results = made.score_many(items, **named)
            try:
                while True:
                    yield runner.run(_next(results))
            except StopAsyncIteration:
                pass
            finally:
                runner.run(results.aclose())
        finally:
            runner.run(made.close())


async def _next(results):
    return await anext(results)
