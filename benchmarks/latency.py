"""What one item costs: what the service adds to a bare forward, and how long it takes beside bulk work."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import grpc

from benchmarks.results import Overhead, UnderLoad
from benchmarks.served import TIMEOUT_S, pairs, raw
from benchmarks.workload import Text, marked
from plaudit.clients import RewardClient
from plaudit.v1 import reward_pb2, reward_pb2_grpc, types_pb2
from services.reward.engine import RewardEngine
from services.reward.items import Encoded

BULK_TIMEOUT_S = 1800.0
"""A stream that lasts longer has failed."""
FULL_BATCHES = 20


def measure_overhead(engine: RewardEngine, client: RewardClient, texts: Sequence[Text]) -> Overhead:
    """Each text once by each way, in turns, the first way first for every other text."""
    found = Overhead()
    for number, text in enumerate(texts):
        encoded = Encoded.of(text.ids)
        ways = [
            (found.bare, lambda encoded=encoded: engine.score([encoded])),
            (found.called, lambda text=text: client.score(pairs([text]))),
        ]
        for seconds, way in ways if number % 2 == 0 else reversed(ways):
            seconds.append(_seconds(way))
    return found


def measure_under_load(address: str, texts: Sequence[Text], singles: Sequence[Text]) -> UnderLoad:
    """Asks for `singles` one after the other while another caller streams `texts` without end.

    The stream's batches are timed before that: beside a single item, some are cut short for its sake.
    """
    with (
        RewardClient(address, caller="single", timeout=TIMEOUT_S) as client,
        _bulk(address, texts) as batches,
    ):
        full_batches = tuple(batches)
        calls = []
        for text in singles:
            began = time.perf_counter()
            scores = client.score(pairs([text]))
            calls.append(time.perf_counter() - began)
            raw(scores[0])
    return UnderLoad(calls, full_batches)


@contextmanager
def _bulk(address: str, texts: Sequence[Text]) -> Iterator[list[float]]:
    """A bulk caller in a thread of its own, which has had FULL_BATCHES to itself when the block begins.

    Gives the seconds that its batches take to compute, by the service's own account. Raises what it has
    failed with.
    """
    batches: list[float] = []
    full, enough = threading.Event(), threading.Event()
    failed: list[Exception] = []

    def run() -> None:
        with grpc.insecure_channel(address) as channel:
            stream = reward_pb2_grpc.RewardServiceStub(channel).ScoreStream(
                _endless(texts), timeout=BULK_TIMEOUT_S, metadata=(("x-plaudit-caller", "bulk"),)
            )
            try:
                for response in stream:
                    batches.append(response.timing.compute_seconds)
                    if len(batches) == FULL_BATCHES:
                        full.set()
                    if enough.is_set():
                        break
            except grpc.RpcError as error:
                failed.append(error)
                full.set()
            finally:
                stream.cancel()

    thread = threading.Thread(target=run, name="bulk")
    thread.start()
    try:
        full.wait()
        if not failed:
            yield batches
    finally:
        enough.set()
        thread.join()
    if failed:
        raise failed[0]


def _endless(texts: Sequence[Text]) -> Iterator[reward_pb2.ScoreStreamRequest]:
    """One item a message; the service reads as much as it takes."""
    for number, (prompt, response) in enumerate(marked(pairs(texts))):
        item = reward_pb2.ScoreItem(pair=types_pb2.TextPair(prompt=prompt, response=response))
        yield reward_pb2.ScoreStreamRequest(items=[reward_pb2.StreamItem(item_id=str(number), item=item)])


def _seconds(way: Callable[[], object]) -> float:
    began = time.perf_counter()
    way()
    return time.perf_counter() - began
