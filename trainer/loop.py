"""What SFT and the reward model share around their steps: resuming, metrics, checkpoints, stopping."""

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from trainer import checkpoints
from trainer.board import Board
from trainer.config import RunOptions, RunSection, Section, render_toml
from trainer.disk import Disk
from trainer.errors import ConfigError, NotFinite, TrainerError
from trainer.identity import (
    CONFIG,
    Change,
    config_changes,
    config_digest,
    digest_changes,
    identity,
    refuse_changes,
)
from trainer.metrics import RunMetrics, Stage
from trainer.outputs import write_text
from trainer.progress import StepProgress, waiting
from trainer.stopping import StopSignal
from trainer.tracing import span
from trainer.trackers import Tracked, Trackers, check_installed

MOST_SKIPS_IN_A_ROW = 3
LOOP = "loop"
"""The checkpoint part that the loop itself keeps."""

logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """Something that a checkpoint keeps."""

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on bit for bit."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse."""
        ...


@dataclass(frozen=True)
class StepResult:
    """What a step reports."""

    values: Mapping[str, float]
    """By the names of the stage's metrics."""
    skipped: bool
    """Whether its gradient wasn't finite and no weight moved."""
    tokens: int
    counts: Mapping[str, float] = field(default_factory=dict)
    """Further counters of the stage, and what the step adds to them."""


@dataclass(frozen=True)
class Run:
    """A run's folder, and the checkpoint that it goes on from."""

    config: Section
    section: RunSection
    options: RunOptions
    checkpoint: Path | None
    board: Board
    stop: StopSignal
    """Listened to while steps are taken."""
    disk: Disk
    """What every file of the run is written by."""
    changes: tuple[Change, ...] = ()
    """Of the configuration since the checkpoint, accepted."""


def open_run(config: Section, section: RunSection, options: RunOptions) -> Run:
    """Finds where to go on, and leaves the effective configuration in the run's folder.

    Raises ConfigError if there is a run of this name and nobody said --resume, if the checkpoint was
    made with another configuration that isn't accepted, or if a tracker isn't installed; CheckpointError if
    there are checkpoints and none is whole; DiskUnusable.
    """
    check_installed(section.trackers)
    stop = StopSignal()
    disk = Disk(section.disk_patience, section.checkpoints, stop)
    run = Run(config, section, options, None, Board(f"{section.name}-{secrets.token_hex(4)}"), stop, disk)
    if options.dry_run:
        return run
    checkpoint = checkpoints.latest_whole(section.checkpoints)
    if checkpoint is not None:
        run = replace(run, checkpoint=checkpoint, changes=_changes(config, section, options, checkpoint))
    text = render_toml(config)
    disk.write(section.folder, len(text), lambda: write_text(section.folder / "config.toml", text))
    return run


def _changes(
    config: Section, section: RunSection, options: RunOptions, checkpoint: Path
) -> tuple[Change, ...]:
    """What differs from the checkpoint's configuration, if the run may go on from there at all."""
    if not options.resume:
        step = checkpoints.step_of(checkpoint)
        reason = f"{section.folder} holds a run at step {step}; add --resume to go on, or choose another name"
        raise ConfigError.at("run.name", reason)
    changes = config_changes(config, checkpoints.load_part(checkpoint, LOOP)["config"])
    refuse_changes(changes, options.accept_changes)
    return tuple(changes)


class Loop:
    """Takes steps until all are done or somebody wants it to stop."""

    def __init__(
        self, stage: Stage, run: Run, total: int, parts: Mapping[str, Stateful], digests: Mapping[str, str]
    ) -> None:
        """`parts` are what a checkpoint keeps, `digests` what it was made from (data, model, tokenizer).

        Restores `parts` if the run goes on. Raises CheckpointError if one is absent from the checkpoint,
        ConfigError if a digest differs and that isn't accepted.
        """
        self.step = 0
        self.changes: list[dict[str, Any]] = []
        """Of configuration, data and models, each with the step after which it was accepted."""
        self.metrics: RunMetrics
        """Open while steps are taken, as are `trackers`."""
        self.trackers: Trackers
        self._stage, self._run, self._total = stage, run, total
        self._parts, self._digests = parts, digests
        self._skips_in_a_row = 0
        self._enough = False
        if run.checkpoint is not None:
            self._restore(run.checkpoint)

    def _restore(self, path: Path) -> None:
        manifest = checkpoints.read_manifest(path)
        changes = digest_changes(self._run.config, self._digests, manifest["digests"])
        refuse_changes(changes, self._run.options.accept_changes)
        states = checkpoints.load(path, [LOOP, *self._parts])
        for name, part in self._parts.items():
            part.load_state_dict(states[name])
        self.step = states[LOOP]["step"]
        self._skips_in_a_row = states[LOOP]["skips_in_a_row"]
        accepted = [{"step": self.step, **asdict(change)} for change in (*self._run.changes, *changes)]
        self.changes = [*manifest["changes"], *accepted]
        logger.info("going on from %s", path)

    def run(
        self,
        take_step: Callable[[int], StepResult],
        after_step: Callable[[int], Mapping[str, float]],
        shown: Mapping[str, str],
        at_start: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        """Runs to the last step, and leaves a checkpoint of it.

        `take_step` gets the step's index from 0; `after_step` the number of steps done, and may return
        further metrics, as may `at_start`, which is called before the first step, resumed or not.
        `shown` maps metrics to their names in the live line.
        Raises Stopped after SIGTERM or StopRun, NotFinite after three skipped steps in a row, and what the
        steps raise: if it is resumable, after a checkpoint.
        """
        resumed = self.step if self._run.checkpoint else None
        with (
            Trackers(Tracked(self._run.config, self._run.section, resumed)) as self.trackers,
            RunMetrics(self._stage, self._run.section.folder, resumed, self._run.disk) as self.metrics,
            self._run.stop as stop,
            StepProgress(self._stage.replace("_", " "), self._total, self.step) as progress,
        ):
            options = self._run.options
            if options.metrics_address:
                print(f"metrics on {self.metrics.serve(options)}", flush=True)
            self._run.board.tell(state="running", step=self.step, total_steps=self._total)
            if at_start:
                with self._span("start", self.step):
                    started = at_start()
                if started:
                    self._log(started)
                    if self.step == self._total:  # it gave up while the last step was judged
                        self._save()
            while self.step < self._total and not self._enough:
                with self._kept_if_resumable(), self._span("step", self.step + 1):
                    values = self._one_step(take_step, after_step)
                progress.advance({label: values[name] for name, label in shown.items()})
                self._keep(stop.requested)

    def finish(self) -> None:
        """Makes the step under way the last one, though the configuration asks for more."""
        self._enough = True

    def _span(self, part: str, step: int) -> AbstractContextManager[None]:
        return span(f"{self._stage} {part}", run=self._run.section.name, step=step)

    def _log(self, values: Mapping[str, float]) -> None:
        self.trackers.scalars(self.step, self.metrics.log(self.step, values))

    @contextmanager
    def _kept_if_resumable(self) -> Iterator[None]:
        try:
            yield
        except TrainerError as error:
            # After a write that was given up, a line of metrics may be missing: the last checkpoint counts.
            if error.resumable and not self._run.disk.given_up:
                self._save()
                error.args = (f"{error}; step {self.step} is kept, go on with --resume",)
            raise

    def _one_step(
        self,
        take_step: Callable[[int], StepResult],
        after_step: Callable[[int], Mapping[str, float]],
    ) -> dict[str, float]:
        start = time.monotonic()
        result = take_step(self.step)
        seconds = time.monotonic() - start
        self.step += 1
        if result.skipped:
            self.metrics.count("skipped_updates")
        for name, amount in result.counts.items():
            self.metrics.count(name, amount)
        self._skips_in_a_row = self._skips_in_a_row + 1 if result.skipped else 0
        if self._skips_in_a_row == MOST_SKIPS_IN_A_ROW:
            raise NotFinite(
                f"the gradient was not finite {MOST_SKIPS_IN_A_ROW} steps in a row, up to step {self.step}; "
                "lower the learning rate"
            )
        timing = {
            "total_steps": self._total,
            "seconds_per_step": seconds,
            "tokens_per_second": result.tokens / seconds,
        }
        values = {**result.values, **timing}
        try:
            values |= after_step(self.step)
        finally:  # the step was taken, whatever became of what follows it
            self._log(values)
        board = self._run.board
        board.tell(step=self.step, last_step_at=datetime.now(UTC), metrics=dict(self.metrics.latest))
        return values

    def _keep(self, stop: bool) -> None:
        every = self._run.section.checkpoint_every
        due = every > 0 and self.step % every == 0
        done = self.step == self._total or self._enough
        if stop or due or done:
            self._save()
        if stop and not done:
            raise self._run.stop.error(
                f"stopped after step {self.step} of {self._total}; go on with --resume"
            )

    def _save(self) -> None:
        """Waits for the disk if need be; the lines of metrics.jsonl up to here come first."""
        config, began = self._run.config, time.monotonic()
        states: dict[str, Any] = {name: part.state_dict() for name, part in self._parts.items()}
        states[LOOP] = {
            "step": self.step,
            "skips_in_a_row": self._skips_in_a_row,
            "config": identity(config),
        }
        digests = {**self._digests, CONFIG: config_digest(config)}
        section = self._run.section
        save = partial(
            checkpoints.save,
            section.checkpoints, self.step, states, digests, section.keep_checkpoints, self.changes,
        )  # fmt: skip
        self.metrics.sync()
        with waiting(f"writing the checkpoint of step {self.step}"):
            path = self._run.disk.write(section.checkpoints, checkpoints.size(states), save)
        self.metrics.show({"checkpoint_seconds": time.monotonic() - began})
        self._run.board.tell(checkpoint=str(path))
