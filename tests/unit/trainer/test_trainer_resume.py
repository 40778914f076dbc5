"""What a run is made of may not change under it, unless that is asked for by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from counting_stage import DIGESTS, Stage, saved

from trainer import checkpoints
from trainer.errors import CheckpointError, ConfigError
from trainer.loop import LOOP
from trainer.metrics_file import read_lines


def newest(folder: Path) -> Path:
    path = checkpoints.latest_whole(folder / "r" / "checkpoints")
    assert path is not None
    return path


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path):
    Stage(tmp_path).run()
    with pytest.raises(ConfigError) as caught:
        Stage(tmp_path, resume=True, rate=2.0)
    change, advice = caught.value.problems
    assert change == "rate: 1.0 when it was saved → 2.0 now"
    assert advice.endswith("--accept-changes rate")
    Stage(tmp_path, resume=True, checkpoint_every=1, disk_patience=5.0, keep_checkpoints=9)


@pytest.mark.parametrize(
    ("digests", "told"),
    [
        ({"data.train": "other"}, 'data.train: "digest" when it was saved → "other" now'),
        ({}, 'data.train: "digest" when it was saved → null now'),
        ({**DIGESTS, "tokenizer": "t"}, 'tokenizer: null when it was saved → "t" now'),
    ],
)
def test_other_content_is_refused_with_the_difference(tmp_path: Path, digests: dict[str, str], told: str):
    Stage(tmp_path).run()
    before = newest(tmp_path)
    with pytest.raises(ConfigError, match="--accept-changes") as caught:
        Stage(tmp_path, resume=True, digests={**digests, "x": "y"})
    assert caught.value.problems[:-1] == (told, 'x: null when it was saved → "y" now')
    assert newest(tmp_path) == before


def test_what_is_accepted_stands_in_every_later_checkpoint(tmp_path: Path):
    Stage(tmp_path, total=2).run()
    other = {"data.train": "other"}
    with pytest.raises(ConfigError, match=r"data\.train"):
        Stage(tmp_path, total=4, rate=2.0, accept=["rate"], digests=other)
    Stage(tmp_path, total=4, rate=2.0, accept=["rate", "data.train"], digests=other).run()
    rate = {"step": 2, "key": "rate", "saved": 1.0, "now": 2.0, "place": ""}
    data = {"step": 2, "key": "data.train", "saved": "digest", "now": "other", "place": ""}
    assert checkpoints.read_manifest(newest(tmp_path))["changes"] == [rate, data]
    # From then on that is the run, and there is nothing to accept.
    stage = Stage(tmp_path, total=6, resume=True, rate=2.0, digests=other)
    stage.run()
    assert stage.loop.changes == checkpoints.read_manifest(newest(tmp_path))["changes"] == [rate, data]
    back = Stage(tmp_path, total=6, accept=["rate"], digests=other)
    assert [change["key"] for change in back.loop.changes] == ["rate", "data.train", "rate"]


def test_without_a_checkpoint_there_is_nothing_to_refuse(tmp_path: Path):
    stage = Stage(tmp_path, rate=2.0, accept=["rate"])
    assert stage.loop.changes == []
    stage.run()
    assert checkpoints.read_manifest(newest(tmp_path))["changes"] == []


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    Stage(tmp_path, keep_checkpoints=3).run()
    folder = tmp_path / "r" / "checkpoints"
    (folder / "step-00000006" / "counter.safetensors").write_bytes(b"")
    stage = Stage(tmp_path, resume=True, keep_checkpoints=3)
    assert "step-00000006: counter.safetensors is damaged" in caplog.text
    stage.run()
    assert [line["step"] for line in read_lines(tmp_path / "r" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert saved(tmp_path) == [2, 4, 6]
    assert newest(tmp_path).name == "step-00000006"


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_whose_checkpoints_are_all_damaged_is_left_alone(tmp_path: Path, resume: bool):
    Stage(tmp_path, keep_checkpoints=1).run()
    folder = tmp_path / "r"
    (folder / "checkpoints" / "step-00000006" / "manifest.json").unlink()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(
        CheckpointError, match=r"no checkpoint is whole .*step-00000006: manifest\.json"
    ) as caught:
        Stage(tmp_path, resume=resume)
    assert caught.value.exit_code == 70
    assert "move" in str(caught.value) and "to start from the beginning" in str(caught.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("torn", ["", '{"step": 5, "ti', '{"step": 5}\n{"st'])
def test_metrics_behind_the_checkpoint_are_taken_again_once(tmp_path: Path, torn: str):
    def numbers(path: Path) -> list[Any]:
        return [(line["step"], line["train/loss"]) for line in read_lines(path)]

    Stage(tmp_path, total=4).run()
    path = tmp_path / "r" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + torn)  # the process was killed in step 5 or 6
    Stage(tmp_path, total=6, resume=True).run()
    assert numbers(path) == [(step, step - 1.0) for step in range(1, 7)]
    assert path.read_text().startswith(json.dumps(json.loads(whole.splitlines()[0])))


def test_the_checkpoint_says_what_it_was_made_from(tmp_path: Path):
    Stage(tmp_path).run()
    digests = checkpoints.read_manifest(newest(tmp_path))["digests"]
    assert digests["data.train"] == "digest"
    assert len(digests["config"]) == 64
    assert checkpoints.load_part(newest(tmp_path), LOOP)["config"]["rate"] == 1.0
