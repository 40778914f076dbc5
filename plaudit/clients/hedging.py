"""A second try beside a first one that is slow: the first answer counts, the other call is cancelled."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

import grpc

from plaudit.clients.budget import Budget
from plaudit.clients.tries import Attempt

ResponseT = TypeVar("ResponseT")


def first_answer(
    begin: "Callable[[Attempt], grpc.Future[ResponseT]]",
    rivals: Sequence[Attempt],
    after: float,
    budget: Budget,
) -> tuple[ResponseT, Attempt]:
    """What the first of two `rivals` to be answered got, and which it was.

    The second begins when the first has no answer `after` so many seconds and `budget` allows it. Raises the
    first one's grpc.RpcError if none is answered.
    """
    ended: SimpleQueue[int] = SimpleQueue()
    calls = [begin(rivals[0])]
    calls[0].add_done_callback(lambda _: ended.put(0))
    budget.earn()
    try:
        with suppress(Empty):
            ended.get(timeout=after)
            return calls[0].result(), rivals[0]
        if budget.spend():
            calls.append(begin(rivals[1]))
            calls[1].add_done_callback(lambda _: ended.put(1))
        for _ in calls:
            if calls[index := ended.get()].exception() is None:
                return calls[index].result(), rivals[index]
        return calls[0].result(), rivals[0]
    finally:
        for call in calls:
            call.cancel()


async def first_answer_async(
    begin: Callable[[Attempt], Awaitable[ResponseT]], rivals: Sequence[Attempt], after: float, budget: Budget
) -> tuple[ResponseT, Attempt]:
    """As first_answer."""
    calls = [asyncio.ensure_future(begin(rivals[0]))]
    budget.earn()
    try:
        ended, _ = await asyncio.wait(calls, timeout=after)
        if not ended and budget.spend():
            calls.append(asyncio.ensure_future(begin(rivals[1])))
        waiting = set(calls)
        while waiting:
            ended, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for call in ended:
                if call.exception() is None:
                    return call.result(), rivals[calls.index(call)]
        return calls[0].result(), rivals[0]
    finally:
        for call in calls:
            call.cancel()
