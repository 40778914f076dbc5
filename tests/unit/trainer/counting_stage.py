"""A stage whose steps count, in a loop as every stage has one."""

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trainer import checkpoints
from trainer.config import RunOptions, RunSection, Section
from trainer.disk import Disk
from trainer.loop import Loop, Run, StepResult, open_run
from trainer.stopping import StopSignal

DIGESTS = {"data.train": "digest"}


class Config(Section):
    run: RunSection
    rate: float = 1.0


class Counter:
    """State that a step changes, and a tensor of `size` bytes."""

    def __init__(self, size: int = 1) -> None:
        self.value = 0
        self.ballast = torch.zeros(size, dtype=torch.uint8)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "ballast": self.ballast}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class Stage:
    """A stage whose loss is the number of the step."""

    def __init__(
        self,
        folder: Path,
        total: int = 6,
        resume: bool = False,
        rate: float = 1.0,
        *,
        accept: Sequence[str] = (),
        digests: Mapping[str, str] | None = None,
        stop: StopSignal | None = None,
        size: int = 1,
        **run: Any,
    ) -> None:
        section = RunSection(name="r", directory=folder, **({"checkpoint_every": 2} | run))
        self.config = Config(run=section, rate=rate)
        options = RunOptions(resume=resume or bool(accept), accept_changes=frozenset(accept))
        self.opened: Run = open_run(self.config, section, options)
        if stop:
            disk = Disk(section.disk_patience, section.checkpoints, stop)
            self.opened = replace(self.opened, stop=stop, disk=disk)
        self.counter = Counter(size)
        self.stop_after = 0
        self.skip: set[int] = set()
        self.loop = Loop("sft", self.opened, total, {"counter": self.counter}, digests or DIGESTS)

    def run(self) -> None:
        self.loop.run(self.take_step, self.after_step, {"train/loss": "loss"})

    def take_step(self, step: int) -> StepResult:
        assert step == self.counter.value
        self.counter.value += 1
        return StepResult({"train/loss": float(step)}, skipped=step in self.skip, tokens=10)

    def after_step(self, done: int) -> Mapping[str, float]:
        if done == self.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"validation/loss": 1.0} if done % 3 == 0 else {}


def saved(folder: Path) -> list[int]:
    return sorted(checkpoints.step_of(path) for path in (folder / "r" / "checkpoints").iterdir())
