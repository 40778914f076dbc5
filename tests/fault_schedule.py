"""Random faults from a seed: the same seed, the same faults."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chaos_proxy import BLACK_HOLE, NONE, ChaosProxy, Fault

LINE_FAULTS = ("delay", "throttle", "cut", "reset")
"""What a connection survives or a new one mends."""
LINE_SCENES = (*LINE_FAULTS, "black hole", "no answers", "hang")
"""What befalls a line."""
SCENES = (*LINE_SCENES, "stop", "kill")
"""What befalls a service: its line, or its process, by SIGSTOP or kill -9."""


@dataclass(frozen=True)
class Scene:
    """One thing that happens."""

    at: float
    """Seconds from the start."""
    service: str
    what: str
    """One of SCENES."""
    lasts: float
    """Seconds until it is over; a service that was killed is started again then."""
    fault: Fault | None
    """Of the line meanwhile; None where something else happens."""

    def begin(self, line: ChaosProxy) -> None:
        """What befalls the line does."""
        if self.fault is None:
            line.hang()
        else:
            line.suffer(self.fault)

    def end(self, line: ChaosProxy) -> None:
        """The line is as it was. A peer that was plugged out is up again, and knows of no connection."""
        if self.fault is None:
            line.cut(resets=True)
        else:
            line.suffer(NONE)


def line_faults(seed: str, count: int) -> Iterator[Fault]:
    """For connections in their order."""
    chance = random.Random(seed)
    for _ in range(count):
        yield line_fault(chance.choice(LINE_FAULTS), chance)


def line_fault(what: str, chance: random.Random) -> Fault:
    """Of the kind, somewhat drawn."""
    if what == "delay":
        return Fault(delay=chance.uniform(0.001, 0.02))
    if what == "throttle":
        return Fault(rate=chance.uniform(1e5, 1e6))
    return Fault(after=chance.randint(0, 5_000), resets=what == "reset")


def scenes(seed: int, services: Sequence[str], seconds: float, kinds: Sequence[str] = SCENES) -> list[Scene]:
    """One after the other, with a while of peace after each."""
    chance, found = random.Random(seed), list[Scene]()
    at = chance.uniform(1, 3)
    while True:
        what = chance.choice(kinds)
        lasts = chance.uniform(0.5, 4)
        if at + lasts > seconds:
            return found
        found.append(Scene(at, chance.choice(services), what, lasts, _fault(what, chance)))
        at += lasts + chance.uniform(1, 4)


NOTHING_THROUGH = {"black hole": BLACK_HOLE, "no answers": Fault(holds=frozenset({"answers"}))}


def _fault(what: str, chance: random.Random) -> Fault | None:
    return line_fault(what, chance) if what in LINE_FAULTS else NOTHING_THROUGH.get(what)
