"""Trackers, with the real packages: what they read back is what metrics.jsonl says, and none ends a run."""

import contextlib
import json
import logging
import math
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_trainer_loop import Stage

from trainer import trackers
from trainer.config import RunSection, Section, TrackerName, load_config, render_toml
from trainer.errors import ConfigError, Stopped, TrainerError
from trainer.metrics_file import read_lines
from trainer.trackers import Row, Tracked, Trackers

ROWS: list[Row] = [
    {"prompt": "the film\nis", "response": " a joy", "scores": {"reward": 0.5, "vowels": None}},
    {"prompt": "a dull", "response": "", "scores": {"reward": -1.25, "vowels": 2.0}},
]


class Killed(Exception):
    """As if the process had been killed: nothing is kept."""


class Watched(Stage):
    """Shows samples after its fifth step, and may die then; the newest checkpoint is of the fourth."""

    dies = False

    def after_step(self, done):
        if done == 5:
            self.loop.trackers.samples(done, ROWS)
            if self.dies:
                raise Killed
        return super().after_step(done)


def killed_and_resumed(folder: Path, tracker: TrackerName):
    """Steps 1 to 5, then 5 and 6."""
    stage = Watched(folder, trackers=(tracker,))
    stage.dies = True
    with pytest.raises(Killed):
        stage.run()
    Watched(folder, resume=True, trackers=(tracker,)).run()


def tracked(folder: Path, *names: Any, resumed: int | None = None) -> Tracked:
    section = RunSection(name="r", directory=folder, trackers=names)
    return Tracked(Settings(run=section), section, resumed)


class Settings(Section):
    run: RunSection
    rate: float = 0.25


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """metrics.jsonl as (step, value) by name."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in read_lines(folder / "r" / "metrics.jsonl"):
        for name, value in line.items():
            if name not in ("step", "time"):
                found.setdefault(name, []).append((line["step"], value))
    return found


# ---- TensorBoard ----


def event_files(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "r" / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    return found.Reload()


def board_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = event_files(folder)
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def board_text(folder: Path, name: str) -> list[tuple[int, str]]:
    events = event_files(folder).Tensors(f"{name}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events]


def single(series: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    """In float32, as event files have it."""
    return {
        name: [(step, float(np.float32(value))) for step, value in points] for name, points in series.items()
    }


def test_tensorboard_has_what_metrics_jsonl_has(tmp_path: Path):
    Stage(tmp_path, total=4, trackers=("tensorboard",)).run()
    assert logged(tmp_path)["train/loss"] == [(1, 0.0), (2, 1.0), (3, 2.0), (4, 3.0)]
    assert board_scalars(tmp_path) == single(logged(tmp_path))


def test_tensorboard_has_each_step_once_after_a_resume(tmp_path: Path):
    killed_and_resumed(tmp_path, "tensorboard")
    assert [step for step, _ in board_scalars(tmp_path)["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert board_scalars(tmp_path) == single(logged(tmp_path))


def test_a_new_run_hides_what_one_without_a_checkpoint_left(tmp_path: Path):
    for _ in range(2):
        with Trackers(tracked(tmp_path, "tensorboard")) as open_trackers:
            open_trackers.scalars(1, {"lr": 0.5})
    assert board_scalars(tmp_path) == {"lr": [(1, 0.5)]}


def test_tensorboard_shows_samples_and_configuration_as_they_are(tmp_path: Path):
    run = tracked(tmp_path, "tensorboard")
    with Trackers(run) as open_trackers:
        open_trackers.samples(4, ROWS)
    ((step, samples),) = board_text(tmp_path, "samples")
    assert step == 4
    assert "    the film\n    is" in samples and "reward: -1.25, vowels: 2.0" in samples
    ((_, config),) = board_text(tmp_path, "config")
    assert "\n".join(line[4:] for line in config.split("\n")) == render_toml(run.config)


def test_values_that_are_not_finite_go_on_as_such(tmp_path: Path):
    with Trackers(tracked(tmp_path, "tensorboard")) as open_trackers:
        open_trackers.scalars(1, {"grad_norm": math.nan})
    ((_, value),) = board_scalars(tmp_path)["grad_norm"]
    assert math.isnan(value)


# ---- Weights & Biases ----


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """The folder of a run that was killed and resumed on a machine without a network."""
    import wandb

    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as environment:
        for switch in ("SILENT", "DISABLE_GIT", "DISABLE_CODE", "X_DISABLE_STATS"):
            environment.setenv(f"WANDB_{switch}", "true")
        environment.setenv("WANDB_MODE", "offline")
        environment.setenv("WANDB_CONSOLE", "off")
        environment.setenv("WANDB_ERROR_REPORTING", "false")
        killed_and_resumed(folder, "wandb")
        wandb.teardown()  # all is written then, and its service process has ended
    return folder


def wandb_records(path: Path) -> Iterator[Any]:
    """Of an offline run's file: a log as LevelDB writes it, in blocks of 32 KiB, behind 7 bytes of header."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, part = path.read_bytes(), 7, b""
    while at < len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        part, at = part + content[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(part)
            part = b""


def wandb_records_of(folder: Path) -> list[Any]:
    """Of all starts of the run, oldest first."""
    files = sorted(
        (folder / "r" / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime
    )
    return [record for path in files for record in wandb_records(path)]


def wandb_history(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """(step, value) by name; nested names as in a path."""
    found: dict[str, list[tuple[int, Any]]] = {}
    for record in wandb_records_of(folder):
        for item in record.history.item:
            name = item.key or ".".join(item.nested_key)
            if not name.startswith("_"):
                found.setdefault(name, []).append((record.history.step.num, json.loads(item.value_json)))
    return found


def test_wandb_has_what_metrics_jsonl_has_and_each_step_once(offline):
    history, lines = wandb_history(offline), logged(offline)
    assert [step for step, _ in history["train/loss"]] == [1, 2, 3, 4, 5, 6]
    for name, points in lines.items():  # the fifth step took another time when it was taken again
        assert [point for point in history[name] if point[0] != 5] == [p for p in points if p[0] != 5], name
    assert [step for step, _ in history["samples.nrows"]] == [5]


def test_wandb_goes_on_under_one_id_with_configuration_and_samples(offline):
    starts = [record.run for record in wandb_records_of(offline) if record.WhichOneof("record_type") == "run"]
    assert len(starts) == 2 and len({run.run_id for run in starts}) == 1
    assert {(run.project, run.display_name) for run in starts} == {("plaudit", "r")}
    config = {each.key: json.loads(each.value_json) for each in starts[0].config.update}
    assert config["rate"] == 1.0 and config["run"]["trackers"] == ["wandb"]
    (table,) = (offline / "r" / "wandb").glob("offline-run-*/files/media/table/*.json")
    assert json.loads(table.read_text()) == {
        "columns": ["prompt", "response", "reward", "vowels"],
        "data": [["the film\nis", " a joy", 0.5, None], ["a dull", "", -1.25, 2.0]],
    }


# ---- what can go wrong ----


class Broken:
    """Fails when it is told of the second step."""

    closed = 0

    def __init__(self, run: Tracked):
        self.steps: list[int] = []

    def scalars(self, step, values):
        self.steps.append(step)
        if step == 2:
            raise OSError("no space left")

    def samples(self, step, rows):
        raise AssertionError("it is off by then")

    def close(self, failed):
        Broken.closed += 1


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_tracker_that_fails_is_off_and_the_run_and_the_others_go_on(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setitem(trackers.KINDS, "wandb", Broken)
    Watched(tmp_path, trackers=("wandb", "tensorboard")).run()
    assert warnings(caplog) == ["wandb is off for the rest of this run: OSError: no space left"]
    assert [step for step, _ in board_scalars(tmp_path)["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert Broken.closed == 0


def test_a_tracker_that_cannot_be_opened_is_off_from_the_start(tmp_path: Path, caplog):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "tensorboard").write_text("in the way")
    Watched(tmp_path, trackers=("tensorboard",)).run()
    (line,) = warnings(caplog)
    assert line.startswith("tensorboard is off for the rest of this run: FileExistsError")
    assert len(read_lines(tmp_path / "r" / "metrics.jsonl")) == 6


@pytest.mark.parametrize(
    ("error", "failed"), [(None, False), (Stopped("by SIGTERM"), False), (ConfigError(["x"]), True)]
)
def test_a_tracker_hears_how_the_run_ended(tmp_path: Path, monkeypatch, error, failed):
    ends = []
    monkeypatch.setattr(Broken, "close", lambda self, failed: ends.append(failed))
    monkeypatch.setitem(trackers.KINDS, "wandb", Broken)
    with contextlib.suppress(TrainerError), Trackers(tracked(tmp_path, "wandb", "wandb")):
        if error:
            raise error
    assert ends == [failed]


def test_a_package_that_is_missing_is_a_wrong_configuration(tmp_path: Path, monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(
        ConfigError, match=r"run\.trackers: wandb isn't installed; run: python -m pip install wandb"
    ):
        Stage(tmp_path, trackers=("wandb",))
    assert not (tmp_path / "r").exists()


def test_an_unknown_tracker_is_a_wrong_configuration(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text('[run]\nname = "r"\ntrackers = ["tensorboard", "mlflow"]')
    with pytest.raises(ConfigError, match=r"run\.trackers\.1: .*'tensorboard' or 'wandb', not \"mlflow\""):
        load_config(Settings, path, environ={})


def test_nothing_is_imported_that_is_not_asked_for(tmp_path: Path, monkeypatch):
    for name in ("tensorboard", "torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)  # an import would raise
    Stage(tmp_path).run()
    assert {path.name for path in (tmp_path / "r").iterdir()} == {
        "checkpoints",
        "config.toml",
        "metrics.jsonl",
    }


def test_trackers_may_be_changed_when_a_run_is_resumed(tmp_path: Path):
    stage = Stage(tmp_path, total=4)
    stage.run()
    Stage(tmp_path, total=6, resume=True, trackers=("tensorboard",)).run()
    assert [step for step, _ in board_scalars(tmp_path)["train/loss"]] == [5, 6]
