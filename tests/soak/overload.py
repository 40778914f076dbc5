"""The reward service under ten times the callers that keep it busy: what it gets done, and for whom."""

import itertools
import os
import threading
import time
from dataclasses import dataclass
from statistics import quantiles

from benchmarks import machine
from plaudit import Overloaded, PlauditError, RewardClient
from soak import verdict
from soak.load import Tally
from soak.verdict import MIB

CALL_ITEMS, CALLERS, TIMES = 512, 8, 10
DEADLINE_S = 60.0
WARM_S, WINDOW_S = 10.0, 20.0
"""Before it is counted, and while it is; the overload is counted for three times as long."""
SINGLE_PAUSE_S, SINGLE_FACTOR, SINGLE_S = 0.2, 1.5, 1.0
GOODPUT = 0.9
WORDS = " a dull and lifeless story, what a wonderful performance, not worth seeing"
NUMBERS = itertools.count()


@dataclass(frozen=True)
class Phase:
    """What came of a load."""

    rate: float
    """Items answered a second, in calls that were answered whole."""
    tally: Tally
    singles: list[float]
    """Seconds of each call of one item beside it; infinite for one that failed."""
    memory: int
    """Bytes of the service at its end."""

    @property
    def single_p99(self):
        return quantiles(self.singles, n=100, method="inclusive")[98]


class Crowd:
    """Callers that each send one big call after the other."""

    def __init__(self, address, count):
        self._address, self._count = address, count
        self.tally, self._over = Tally(), threading.Event()
        self._answered, self.singles = [], []

    def _call(self):
        with RewardClient(self._address, timeout=DEADLINE_S) as client:
            while not self._over.is_set():
                items = [("the film", f"{WORDS} {next(NUMBERS)}") for _ in range(CALL_ITEMS)]
                self.tally.count("sent")
                try:
                    client.score(items, all_or_nothing=True)
                except Overloaded:
                    self.tally.count("rejected")
                except PlauditError:
                    self.tally.count("failed")
                else:
                    self.tally.count("answered")
                    self._answered.append(time.monotonic())

    def _call_one(self):
        """Somebody who waits for each."""
        with RewardClient(self._address, timeout=DEADLINE_S) as client:
            while not self._over.wait(SINGLE_PAUSE_S):
                began = time.monotonic()
                try:
                    client.score([("one", f" item {next(NUMBERS)}")], all_or_nothing=True)
                except PlauditError:
                    self.singles.append(float("inf"))
                else:
                    self.singles.append(time.monotonic() - began)

    def run(self, window):
        """Items answered a second."""
        callers = [threading.Thread(target=self._call, daemon=True) for _ in range(self._count)]
        for thread in (*callers, threading.Thread(target=self._call_one, daemon=True)):
            thread.start()
        time.sleep(WARM_S)
        began = time.monotonic()
        self.singles.clear()
        time.sleep(window)
        end = time.monotonic()
        self._over.set()
        for thread in callers:
            thread.join(2 * DEADLINE_S)
        return CALL_ITEMS * sum(began <= at < end for at in tuple(self._answered)) / (end - began)


def measure(service, callers, window):
    """A Phase of so many callers."""
    crowd = Crowd(service.address, callers)
    rate = crowd.run(window)
    return Phase(rate, crowd.tally, list(crowd.singles), service.footprint().memory)


def overload(site):
    """The report, and what is wrong."""
    service = site.services["reward"]
    busy = measure(service, CALLERS, WINDOW_S)
    full = measure(service, TIMES * CALLERS, 3 * WINDOW_S)
    goodput = full.rate / busy.rate
    rows = [
        [f"{callers} callers", f"{phase.rate:.0f}",
         *(phase.tally.counts[each] for each in ("sent", "answered", "rejected", "failed")),
         f"{phase.single_p99:.2f}", f"{phase.memory / MIB:.0f}"]
        for callers, phase in ((CALLERS, busy), (TIMES * CALLERS, full))
    ]  # fmt: skip
    head = ["", "items/s", "calls sent", "answered", "rejected", "failed", "one item, p99, s", "memory, MiB"]
    problems = [*problems_of(busy, full, goodput)]
    return "\n".join([
        f"- {machine.now()}, `make soak OVERLOAD=1`",
        f"- {machine.processor()}, {os.cpu_count()} processors, callers included", "",
        *verdict.table(head, rows), "",
        f"Under {TIMES} times the callers, each with calls of {CALL_ITEMS} items, goodput is {goodput:.2f} "
        f"of the maximum (≥ {GOODPUT}).", "",
        *verdict.ending(problems),
    ]), problems  # fmt: skip


def problems_of(busy, full, goodput):
    """What an overload may not do."""
    if goodput < GOODPUT:
        yield f"goodput fell to {goodput:.2f}"
    if not full.tally.adds_up:
        yield f"{dict(full.tally.counts)} doesn't add up: a call has no end"
    if full.single_p99 > max(SINGLE_S, SINGLE_FACTOR * busy.single_p99):
        yield f"one item waited {full.single_p99:.2f} s (p99)"
    if full.memory > busy.memory * verdict.MEMORY_FACTOR + verdict.MEMORY_MIB * MIB:
        yield f"{busy.memory / MIB:.0f} MiB grew to {full.memory / MIB:.0f}"
