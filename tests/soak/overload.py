"""The reward service under ten times the callers that keep it busy: what it gets done, and for whom.

Service and callers each have a processor of their own where there are two, at both loads: otherwise more
callers would leave it less to work with, and what it loses to them couldn't be told from what it loses by
itself.
"""

import itertools
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, quantiles

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks import machine
from plaudit import Overloaded, PlauditError, RewardClient
from soak import verdict
from soak.load import Tally
from soak.verdict import MIB

CALL_ITEMS, CALLERS, TIMES = 512, 8, 10
DEADLINE_S = 60.0
WARM_S, FULL_WARM_S = 10.0, 45.0
"""Before it is counted: of eighty callers the last has its first answer after so long."""
BUSY_SHARE, LEAST_BUSY_S = 0.1, 20.0
"""For how long the eight are counted, before and after the eighty, as a part of the time of those."""
SINGLE_PAUSE_S, SINGLE_FACTOR, SINGLE_S = 0.2, 1.5, 1.0
HEALTH_S = 1.0
"""What Kubernetes gives a probe unless told otherwise."""
GOODPUT = 0.9
WORDS = " a dull and lifeless story, what a wonderful performance, not worth seeing"
NUMBERS = itertools.count(100_000)
"""In each item, so that none is like another; all of six digits, so that they are of equal length."""


@dataclass(frozen=True)
class Phase:
    """What came of a load."""

    rate: float
    """Items answered a second, in calls that were answered whole."""
    tally: Tally
    singles: list[float]
    """Seconds of each call of one item beside it; infinite for one that failed."""
    health: list[float]
    """The same of its health."""
    memory: int
    """Bytes of the service at its end."""
    cost: float
    """Seconds of its processor for an item."""

    @property
    def single_p99(self):
        return quantiles(self.singles, n=100, method="inclusive")[98]


class Crowd:
    """Callers that each send one big call after the other."""

    def __init__(self, address, count):
        self._address, self._count = address, count
        self.tally, self._over = Tally(), threading.Event()
        self._served, self.singles, self.health = [], [], []

    def _call(self):
        with RewardClient(self._address, timeout=DEADLINE_S) as client:
            while not self._over.is_set():
                items = [("the film", f"{WORDS} {next(NUMBERS)}") for _ in range(CALL_ITEMS)]
                self.tally.count("sent")
                try:
                    timing = client.score(items, all_or_nothing=True).timing
                except Overloaded:
                    self.tally.count("rejected")
                except PlauditError:
                    self.tally.count("failed")
                else:
                    self.tally.count("answered")
                    served = timing.queue_seconds + timing.compute_seconds
                    self._served.append((time.monotonic() - served, time.monotonic()))

    def _call_one(self):
        """Somebody who waits for each."""
        with RewardClient(self._address, timeout=DEADLINE_S) as client:
            while not self._over.wait(SINGLE_PAUSE_S):
                item = [("one", f" item {next(NUMBERS)}")]
                self.singles.append(seconds_of(lambda item=item: client.score(item, all_or_nothing=True)))

    def _probe(self):
        """What Kubernetes does."""
        with grpc.insecure_channel(self._address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            while not self._over.wait(SINGLE_PAUSE_S):
                asked = health_pb2.HealthCheckRequest()
                self.health.append(seconds_of(lambda asked=asked: health.Check(asked, timeout=DEADLINE_S)))

    def run(self, warm, window):
        """Items answered a second; of calls that were answered whole, the part that was then done.

        Calls that take turns end together, in bunches of thousands of items: counted where they end, a minute
        would have one bunch more or less.
        """
        callers = [threading.Thread(target=self._call, daemon=True) for _ in range(self._count)]
        others = [threading.Thread(target=each, daemon=True) for each in (self._call_one, self._probe)]
        for thread in (*callers, *others):
            thread.start()
        time.sleep(warm)
        began = time.monotonic()
        self.singles.clear()
        self.health.clear()
        time.sleep(window)
        end = time.monotonic()
        self._over.set()
        for thread in callers:
            thread.join(2 * DEADLINE_S)
        done = sum(part_within(served, began, end) for served in tuple(self._served))
        return CALL_ITEMS * done / (end - began)


def part_within(spell, began, end):
    """How much of a spell, from one moment to another, lies between two others; 0 to 1."""
    first, last = spell
    return max(0.0, min(last, end) - max(first, began)) / (last - first)


def seconds_of(call):
    """How long it takes; infinite if it fails."""
    began = time.monotonic()
    try:
        call()
    except (PlauditError, grpc.RpcError):
        return float("inf")
    return time.monotonic() - began


def processor_seconds(pid):
    """What a process has used of its processors so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def keep_apart(pid):
    """Gives that process one processor and this one the others; says how it is."""
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) < 2:
        return "callers and service on one processor"
    for process, processors in ((pid, mine[-1:]), (os.getpid(), mine[:-1])):
        for task in Path(f"/proc/{process}/task").iterdir():
            with suppress(ProcessLookupError):  # a thread that has just ended
                os.sched_setaffinity(int(task.name), processors)
    return f"the service on one, the callers on {len(mine) - 1} other"


def measure(service, callers, warm, window):
    """A Phase of so many callers."""
    crowd, used = Crowd(service.address, callers), processor_seconds(service.pid)
    rate = crowd.run(warm, window)
    cost = (processor_seconds(service.pid) - used) / max(1, CALL_ITEMS * crowd.tally.counts["answered"])
    health, singles = list(crowd.health), list(crowd.singles)
    return Phase(rate, crowd.tally, singles, health, service.footprint().memory, cost)


def overload(site, seconds):
    """The report of `seconds` of overload, and what is wrong."""
    service, load = site.services["reward"], machine.load_average()
    apart = keep_apart(service.pid)
    busy_s = max(LEAST_BUSY_S, BUSY_SHARE * seconds)
    before = measure(service, CALLERS, WARM_S, busy_s)
    full = measure(service, TIMES * CALLERS, FULL_WARM_S, seconds)
    after = measure(service, CALLERS, WARM_S, busy_s)
    problems = [*problems_of(before, full, after)]
    return "\n".join([
        f"- {machine.now()}, `make soak OVERLOAD=1 MINUTES={seconds / 60:g}`",
        f"- {machine.processor()}, {os.cpu_count()} processors: {apart}; "
        f"load average {load:.1f} at the start", "",
        *verdict.table(HEAD, [row(CALLERS, before), row(TIMES * CALLERS, full), row(CALLERS, after)]), "",
        f"Under {TIMES} times the callers, each with calls of {CALL_ITEMS} items, goodput is "
        f"{goodput(before, full, after):.2f} of the maximum (≥ {GOODPUT}).", "",
        *verdict.ending(problems),
    ]), problems  # fmt: skip


HEAD = ["", "items/s", "ms of processor an item", "calls sent", "answered", "rejected", "failed",
        "one item, p99, s", "health, worst, s", "memory, MiB"]  # fmt: skip


def row(callers, phase):
    """Of the table."""
    counts = [phase.tally.counts[each] for each in ("sent", "answered", "rejected", "failed")]
    return [f"{callers} callers", f"{phase.rate:.0f}", f"{phase.cost * 1e3:.2f}", *counts,
            f"{phase.single_p99:.2f}", f"{max(phase.health):.2f}", f"{phase.memory / MIB:.0f}"]  # fmt: skip


def goodput(before, full, after):
    """What is left of the maximum: of its mean before and after, since a machine that others use, too, is
    faster at one time than at another."""
    return full.rate / fmean([before.rate, after.rate])


def problems_of(before, full, after):
    """What an overload may not do."""
    if (part := goodput(before, full, after)) < GOODPUT:
        yield f"goodput fell to {part:.2f}"
    if not full.tally.adds_up:
        yield f"{dict(full.tally.counts)} doesn't add up: a call has no end"
    if full.single_p99 > max(SINGLE_S, SINGLE_FACTOR * before.single_p99):
        yield f"one item waited {full.single_p99:.2f} s (p99)"
    if max(full.health) > HEALTH_S:
        yield f"health took {max(full.health):.2f} s"
    if full.memory > before.memory * verdict.MEMORY_FACTOR + verdict.MEMORY_MIB * MIB:
        yield f"{before.memory / MIB:.0f} MiB grew to {full.memory / MIB:.0f}"
