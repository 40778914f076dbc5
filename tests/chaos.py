"""The chaos proxy as a command: lines to any services, which fail as a schedule says, or as a seed does.

    python tests/chaos.py --line reward=127.0.0.1:50052 --line policy=15051:10.0.0.7:50051 --schedule FILE
    python tests/chaos.py --line reward=127.0.0.1:50052 --seed 7 --seconds 120 [--draw > FILE]

Each line listens on this machine, on the port before its service's address or on a free one, and is printed
as "NAME listens on HOST:PORT". The schedule begins at once, or with --wait at the first connection. When it
is over the lines are good until Ctrl-C or SIGTERM. The format of a schedule: docs/reliability.md.
"""

import argparse
import contextlib
import json
import math
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from chaos_proxy import ChaosProxy, Fault
from fault_schedule import LINE_SCENES, NOTHING_THROUGH, Scene, scenes
from pydantic import BaseModel, ConfigDict, Field, ValidationError

SETTING = {"delay": "delay", "throttle": "rate", "cut": "after", "reset": "after"}
"""The setting that a scene needs, and may have only then."""
POLL_S = 0.05


class Entry(BaseModel):
    """A line of a schedule."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    at: Annotated[float, Field(ge=0)]
    line: str
    what: Literal["delay", "throttle", "cut", "reset", "black hole", "no answers", "hang"]
    lasts: Annotated[float, Field(gt=0)]
    delay: Annotated[float | None, Field(gt=0)] = None
    rate: Annotated[float | None, Field(gt=0)] = None
    after: Annotated[int | None, Field(ge=0)] = None

    def scene(self) -> Scene:
        """Raises ValueError for settings that don't go with `what`."""
        given = [name for name in ("delay", "rate", "after") if getattr(self, name) is not None]
        needed = [SETTING[self.what]] if self.what in SETTING else []
        if given != needed:
            takes, found = (" and ".join(names) or "no setting" for names in (needed, given))
            raise ValueError(f"{self.what!r} takes {takes}, found {found}")
        return Scene(self.at, self.line, self.what, self.lasts, self._fault())

    def _fault(self) -> Fault | None:
        match self.what:
            case "delay":
                return Fault(delay=self.delay or 0.0)
            case "throttle":
                return Fault(rate=self.rate or math.inf)
            case "cut" | "reset":
                return Fault(after=self.after or 0, resets=self.what == "reset")
            case _:
                return NOTHING_THROUGH.get(self.what)


def read_schedule(path: Path, lines: Iterable[str]) -> list[Scene]:
    """In order. Raises SystemExit naming what is wrong and where."""
    found: list[Scene] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not text.strip():
            continue
        try:
            found.append(Entry.model_validate_json(text).scene())
        except ValidationError as error:
            first = error.errors()[0]
            raise SystemExit(
                f"{path} line {number}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
            ) from None
        except ValueError as error:
            raise SystemExit(f"{path} line {number}: {error}") from None
    found.sort(key=lambda scene: scene.at)
    _check(found, set(lines), path)
    return found


def _check(found: Sequence[Scene], lines: set[str], path: Path) -> None:
    ends: dict[str, float] = {}
    for scene in found:
        if scene.service not in lines:
            raise SystemExit(f"{path}: there is no line {scene.service!r}; lines: {', '.join(sorted(lines))}")
        if scene.at < ends.get(scene.service, 0.0):
            raise SystemExit(f"{path}: at {scene.at} s, {scene.service}: the scene before is not over yet")
        ends[scene.service] = scene.at + scene.lasts


def as_line(scene: Scene) -> str:
    """As `read_schedule` reads it."""
    setting = SETTING.get(scene.what)
    settings = {} if setting is None else {setting: getattr(scene.fault, setting)}
    entry = {"at": scene.at, "line": scene.service, "what": scene.what, "lasts": scene.lasts, **settings}
    return json.dumps(
        {key: round(value, 3) if isinstance(value, float) else value for key, value in entry.items()}
    )


def play(
    schedule: Sequence[Scene],
    lines: Mapping[str, ChaosProxy],
    over: threading.Event,
    tell: Callable[[str], object] = lambda text: None,
) -> None:
    """Lets each scene happen at its time from now on, until all are or it is `over`; then lines are good."""
    began = time.monotonic()
    steps = [(scene.at + scene.lasts, 0, scene) for scene in schedule]
    steps += [(scene.at, 1, scene) for scene in schedule]
    for at, begins, scene in sorted(steps, key=lambda step: step[:2]):
        if over.wait(max(0.0, began + at - time.monotonic())):
            break
        if begins:
            tell(f"{at:8.2f} s  {as_line(scene)}")
            scene.begin(lines[scene.service])
        else:
            scene.end(lines[scene.service])
    for line in lines.values():
        line.suffer(Fault())


def main(arguments: Sequence[str]) -> int:
    """The exit code."""
    asked = _arguments(arguments)
    targets = dict(map(_line, asked.line))
    if asked.schedule:
        schedule = read_schedule(asked.schedule, targets)
    else:
        seed = asked.seed if asked.seed is not None else random.randrange(10**6)
        print(f"seed {seed}", file=sys.stderr, flush=True)
        schedule = scenes(seed, list(targets), asked.seconds, LINE_SCENES)
    if asked.draw:
        print("\n".join(map(as_line, schedule)))
        return 0
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    with contextlib.ExitStack() as stack:
        lines = {name: stack.enter_context(ChaosProxy(*target)) for name, target in targets.items()}
        for name, line in lines.items():
            print(f"{name} listens on {line.address}", flush=True)
        while asked.wait and not over.is_set() and not any(line.connections for line in lines.values()):
            over.wait(POLL_S)
        play(schedule, lines, over, lambda text: print(text, file=sys.stderr, flush=True))
        over.wait()
    return 0


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos", description="Lines to services, which fail on schedule.")
    parser.add_argument("--line", action="append", required=True, metavar="NAME=[PORT:]HOST:PORT")
    parser.add_argument(
        "--schedule", type=Path, metavar="FILE", help="JSON Lines; drawn from the seed without it"
    )
    parser.add_argument("--seed", type=int, help="of the schedule; drawn and printed if left out")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the drawn schedule is")
    parser.add_argument("--wait", action="store_true", help="begin at the first connection")
    parser.add_argument("--draw", action="store_true", help="print the schedule and end")
    return parser.parse_args(arguments)


def _line(text: str) -> tuple[str, tuple[str, int]]:
    """Name, and what a ChaosProxy is made of."""
    found = re.fullmatch(r"([\w-]+)=(?:(\d+):)?([^:=]+:\d+)", text)
    if found is None:
        raise SystemExit(f"--line {text}: is written NAME=HOST:PORT, or NAME=PORT:HOST:PORT")
    return found[1], (found[3], int(found[2] or 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
