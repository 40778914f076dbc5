"""A run's scalars, samples and configuration for tools of others, as `run.trackers` asks for them.

    runs/NAME/tensorboard   event files of TensorBoard: tensorboard --logdir runs
    runs/NAME/wandb         files of Weights & Biases, and the id under which a resumed run goes on there

Neither package is imported unless it is asked for. A tracker that fails is off from then on; the run goes on.
"""

import json
import logging
import os
import secrets
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from types import TracebackType
from typing import Any, Protocol, Self

from trainer.config import RunSection, Section, TrackerName, render_toml
from trainer.errors import ConfigError, Stopped
from trainer.outputs import read_json, write_json

PROJECT = "plaudit"
UPLOAD_S = 60.0
"""How long a run that has ended waits for its last uploads; what is left stays on disk for `wandb sync`."""

Row = Mapping[str, Any]
"""A sample as evaluations/*.json has it: `prompt`, `response`, and `scores` by judge."""

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """A tool that keeps runs. May raise anything: see Trackers."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """What was measured in a step, by the names of metrics.jsonl. The last word on that step."""
        ...

    def samples(self, step: int, rows: Sequence[Row]) -> None:
        """Responses by the weights of `step`."""
        ...

    def close(self, failed: bool) -> None:
        """The run has ended, by an error or not."""
        ...


@dataclass(frozen=True)
class Tracked:
    """What a tracker is told of a run when it starts."""

    config: Section
    section: RunSection
    resumed: int | None = None
    """Steps done before this start; None for a new run."""


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, run: Tracked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What an earlier start wrote from this step on is left out by readers.
        first = 0 if run.resumed is None else run.resumed + 1
        self._writer = SummaryWriter(str(run.section.folder / "tensorboard"), purge_step=first)
        self._writer.add_text("config", _verbatim(render_toml(run.config)), run.resumed or 0)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As Tracker.scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def samples(self, step: int, rows: Sequence[Row]) -> None:
        """As Tracker.samples."""
        self._writer.add_text("samples", "\n\n---\n\n".join(map(_markdown, rows)), step)

    def close(self, failed: bool) -> None:
        """As Tracker.close."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases, online or not as its own environment variables say."""

    def __init__(self, run: Tracked) -> None:
        import wandb

        self._table = wandb.Table
        self._state = run.section.folder / "wandb" / "plaudit.json"
        self._state.parent.mkdir(parents=True, exist_ok=True)
        known = {} if run.resumed is None else read_json(self._state)
        self._id: str = known.get("id") or secrets.token_hex(4)
        # A history there only grows: steps that are taken again stand in it already.
        self._again = range((run.resumed or 0) + 1, known.get("step", 0) + 1)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.section.name,
            id=self._id,
            resume="allow",
            dir=str(run.section.folder),
            config=json.loads(run.config.model_dump_json()),
            settings=wandb.Settings(finish_timeout=UPLOAD_S),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As Tracker.scalars."""
        self._log(step, values, commit=True)
        write_json(self._state, {"id": self._id, "step": max(step, self._again.stop - 1)})

    def samples(self, step: int, rows: Sequence[Row]) -> None:
        """As Tracker.samples."""
        judges = list(rows[0]["scores"]) if rows else []
        cells = [
            [row["prompt"], row["response"], *(row["scores"][judge] for judge in judges)] for row in rows
        ]
        self._log(step, {"samples": self._table(["prompt", "response", *judges], cells)}, commit=False)

    def _log(self, step: int, values: Mapping[str, Any], commit: bool) -> None:
        if step not in self._again:
            self._run.log(dict(values), step=step, commit=commit)

    def close(self, failed: bool) -> None:
        """As Tracker.close."""
        self._run.finish(exit_code=int(failed))


KINDS: Mapping[TrackerName, Callable[[Tracked], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}


def check_installed(names: Sequence[TrackerName]) -> None:
    """Raises ConfigError for a tracker whose package isn't there."""
    for name in names:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            reason = f"{name} isn't installed; run: python -m pip install {name}"
            raise ConfigError.at("run.trackers", reason) from None


class Trackers:
    """The trackers of a run, as a context manager around its steps. None of them can end the run."""

    def __init__(self, run: Tracked) -> None:
        """Opens them."""
        self._open: dict[TrackerName, Tracker] = {}
        for name in dict.fromkeys(run.section.trackers):
            with self._off_if_it_fails(name):
                self._open[name] = KINDS[name](run)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Tells each, as Tracker.scalars."""
        self._each(lambda tracker: tracker.scalars(step, values))

    def samples(self, step: int, rows: Sequence[Row]) -> None:
        """Tells each, as Tracker.samples."""
        self._each(lambda tracker: tracker.samples(step, rows))

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            with self._off_if_it_fails(name):
                tell(tracker)

    @contextmanager
    def _off_if_it_fails(self, name: TrackerName) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            logger.warning("%s is off for the rest of this run: %s: %s", name, type(error).__name__, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        failed = error is not None and not isinstance(error, Stopped)
        self._each(lambda tracker: tracker.close(failed))


def _verbatim(text: str) -> str:
    """A block that Markdown shows as it is."""
    return textwrap.indent(text, "    ", lambda line: True)


def _markdown(row: Row) -> str:
    scores = ", ".join(f"{judge}: {score}" for judge, score in row["scores"].items())
    return f"{_verbatim(row['prompt'])}\n\n{scores}\n\n{_verbatim(row['response'])}"
