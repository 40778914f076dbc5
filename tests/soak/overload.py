"""The reward service under ten times the callers that keep it busy: what it gets done, and for whom; by its
own port, or through the gateway.

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
from functools import partial
from pathlib import Path
from statistics import fmean, quantiles

import grpc

from benchmarks import machine
from plaudit import Overloaded, PlauditError
from soak import verdict
from soak.load import Tally
from soak.verdict import MIB
from soak.ways import DEADLINE_S, OverGrpc, OverHttp

CALL_ITEMS, CALLERS, TIMES = 512, 8, 10
WARM_S, FULL_WARM_S = 10.0, 45.0
"""Before it is counted: of eighty callers the last has its first answer after so long."""
RESTED_S = 120.0
"""The same at the very beginning: a processor that has rested is faster for its first minutes."""
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
    memory: dict[str, int]
    """Bytes of the service, and of the gateway before it, at its end."""
    cost: float
    """Seconds of its processor for an item."""

    @property
    def single_p99(self):
        return quantiles(self.singles, n=100, method="inclusive")[98]


class Crowd:
    """Callers that each send one big call after the other."""

    def __init__(self, way, count):
        self._way, self._count = way, count
        self.tally, self._over = Tally(), threading.Event()
        self._served, self.singles, self.health = [], [], []

    def _call(self):
        with self._way.caller() as score:
            while not self._over.is_set():
                items = [("the film", f"{WORDS} {next(NUMBERS)}") for _ in range(CALL_ITEMS)]
                self.tally.count("sent")
                try:
                    served = score(items)
                except Overloaded:
                    self.tally.count("rejected")
                except PlauditError:
                    self.tally.count("failed")
                else:
                    self.tally.count("answered")
                    self._served.append((time.monotonic() - served, time.monotonic()))

    def _call_one(self):
        """Somebody who waits for each."""
        with self._way.caller() as score:
            while not self._over.wait(SINGLE_PAUSE_S):
                item = [("one", f" item {next(NUMBERS)}")]
                self.singles.append(seconds_of(partial(score, item)))

    def _probe(self):
        """What Kubernetes does."""
        with self._way.probe() as ask:
            while not self._over.wait(SINGLE_PAUSE_S):
                self.health.append(seconds_of(ask))

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


def keep_apart(pid, others):
    """Gives that process one processor, this one and the others the rest; says how it is."""
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) < 2:
        return "callers and service on one processor"
    for process, processors in ((pid, mine[-1:]), *((each, mine[:-1]) for each in (os.getpid(), *others))):
        for task in Path(f"/proc/{process}/task").iterdir():
            with suppress(ProcessLookupError):  # a thread that has just ended
                os.sched_setaffinity(int(task.name), processors)
    gateway = " and the gateway" if others else ""
    return f"the service on one, the callers{gateway} on {len(mine) - 1} other"


def measure(way, processes, callers, warm, window):
    """A Phase of so many callers; the first of the processes is the service."""
    service = processes[0]
    crowd, used = Crowd(way, callers), processor_seconds(service.pid)
    rate = crowd.run(warm, window)
    cost = (processor_seconds(service.pid) - used) / max(1, CALL_ITEMS * crowd.tally.counts["answered"])
    health, singles = list(crowd.health), list(crowd.singles)
    memory = {each.name: each.footprint().memory for each in processes}
    return Phase(rate, crowd.tally, singles, health, memory, cost)


def overload(site, seconds, how):
    """The report of `seconds` of overload, through the gateway if it says so, and what is wrong."""
    service, load = site.services["reward"], machine.load_average()
    gateways = [site.add_gateway(service.address)] if how == "gateway" else []
    way = OverHttp(gateways[0].address) if gateways else OverGrpc(service.address)
    apart = keep_apart(service.pid, [each.pid for each in gateways])
    busy_s = max(LEAST_BUSY_S, BUSY_SHARE * seconds)
    phase = partial(measure, way, [service, *gateways])
    before = phase(CALLERS, RESTED_S, busy_s)
    full = phase(TIMES * CALLERS, FULL_WARM_S, seconds)
    after = phase(CALLERS, WARM_S, busy_s)
    problems = [*problems_of(before, full, after)]
    return "\n".join([
        f"- {machine.now()}, commit {verdict.commit()}, `make soak OVERLOAD={how} MINUTES={seconds / 60:g}`",
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
            f"{phase.single_p99:.2f}", f"{max(phase.health):.2f}",
            ", ".join(f"{name} {memory / MIB:.0f}" for name, memory in phase.memory.items())]  # fmt: skip


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
    for name, memory in full.memory.items():
        if memory > (was := before.memory[name]) * verdict.MEMORY_FACTOR + verdict.MEMORY_MIB * MIB:
            yield f"{name}: {was / MIB:.0f} MiB grew to {memory / MIB:.0f}"
