"""What one item costs: what the service adds to a bare forward, and how long it takes beside bulk work."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from benchmarks.results import Overhead, UnderLoad
from benchmarks.served import TIMEOUT_S, pairs, raw
from benchmarks.workload import Text, marked
from plaudit.clients import RewardClient
from services.reward.engine import RewardEngine
from services.reward.items import Encoded

BULK_TIMEOUT_S = 60.0
"""A bulk caller that has no result for so long has failed."""


def measure_overhead(engine: RewardEngine, client: RewardClient, texts: Sequence[Text]) -> Overhead:
    """Each text once by each way, in turns, the first way first for every other text."""
    found = Overhead()
    for number, text in enumerate(texts):
        ways = [
            (found.bare, lambda text=text: engine.score([Encoded(text.ids)])),
            (found.called, lambda text=text: client.score(pairs([text]))),
        ]
        for seconds, way in ways if number % 2 == 0 else reversed(ways):
            seconds.append(_seconds(way))
    return found


def measure_under_load(address: str, texts: Sequence[Text], singles: Sequence[Text]) -> UnderLoad:
    """Asks for `singles` one after the other while another caller streams `texts` without end."""
    with RewardClient(address, caller="single", timeout=TIMEOUT_S) as client, _bulk(address, texts):
        calls, batches = [], []
        for text in singles:
            began = time.perf_counter()
            scores = client.score(pairs([text]))
            calls.append(time.perf_counter() - began)
            batches.append(scores.timing.compute_seconds)
            raw(scores[0])
    return UnderLoad(calls, batches)


@contextmanager
def _bulk(address: str, texts: Sequence[Text]) -> Iterator[None]:
    """A bulk caller in a thread of its own, whose window is full when the block begins.

    Raises what it has failed with.
    """
    full, enough = threading.Event(), threading.Event()
    failed: list[Exception] = []

    def run() -> None:
        with RewardClient(address, caller="bulk", timeout=BULK_TIMEOUT_S) as client:
            results = client.score_many(marked(pairs(texts)))
            try:
                while not enough.is_set():
                    raw(next(results))
                    full.set()
            except Exception as error:
                failed.append(error)
                full.set()
            finally:
                results.close()

    thread = threading.Thread(target=run, name="bulk")
    thread.start()
    try:
        full.wait()
        if not failed:
            yield
    finally:
        enough.set()
        thread.join()
    if failed:
        raise failed[0]


def _seconds(way: Callable[[], object]) -> float:
    began = time.perf_counter()
    way()
    return time.perf_counter() - began
