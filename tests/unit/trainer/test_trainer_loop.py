import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from counting_stage import DIGESTS, Config, Counter, Stage, saved

from trainer import checkpoints
from trainer.config import RunOptions, RunSection
from trainer.errors import CheckpointError, ConfigError, NotFinite, Stopped
from trainer.loop import Loop, open_run
from trainer.metrics_file import read_lines
from trainer.outputs import export_model, read_json, replace_folder, write_json
from trainer.stopping import StopSignal


def test_all_steps_are_taken_logged_and_kept(tmp_path: Path):
    stage = Stage(tmp_path, total=5)
    stage.run()
    lines = read_lines(tmp_path / "r" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["train/loss"] for line in lines] == [0, 1, 2, 3, 4]
    assert ["validation/loss" in line for line in lines] == [False, False, True, False, False]
    assert all(line["total_steps"] == 5 and line["tokens_per_second"] > 0 for line in lines)
    assert saved(tmp_path) == [4, 5]
    assert 'name = "r"' in (tmp_path / "r" / "config.toml").read_text()


def test_sigterm_finishes_the_step_saves_and_says_so(tmp_path: Path):
    stage = Stage(tmp_path)
    stage.stop_after = 3
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped after step 3 of 6; go on with --resume") as caught:
        stage.run()
    assert caught.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) is before
    assert saved(tmp_path) == [2, 3]
    again = Stage(tmp_path, resume=True)
    assert again.loop.step == again.counter.value == 3
    again.run()
    assert [line["step"] for line in read_lines(tmp_path / "r" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_sigterm_in_the_last_step_is_an_end(tmp_path: Path):
    stage = Stage(tmp_path)
    stage.stop_after = 6
    stage.run()
    assert saved(tmp_path) == [4, 6]


def test_without_interval_only_the_end_is_kept(tmp_path: Path):
    Stage(tmp_path, checkpoint_every=0).run()
    assert saved(tmp_path) == [6]


def test_resume_with_nothing_to_resume_starts(tmp_path: Path):
    stage = Stage(tmp_path, resume=True)
    assert stage.opened.checkpoint is None
    stage.run()


def test_a_finished_loop_takes_no_step(tmp_path: Path):
    Stage(tmp_path).run()
    stage = Stage(tmp_path, resume=True)
    assert stage.loop.step == 6
    stage.run()
    assert stage.counter.value == 6


def test_a_run_is_not_overwritten_by_accident(tmp_path: Path):
    Stage(tmp_path).run()
    with pytest.raises(ConfigError, match=r"run\.name: .*holds a run at step 6; add --resume"):
        Stage(tmp_path)


def test_a_dry_run_may_look_at_anything(tmp_path: Path):
    Stage(tmp_path).run()
    section = RunSection(name="r", directory=tmp_path)
    opened = open_run(Config(run=section, rate=9.0), section, RunOptions(dry_run=True))
    assert opened.checkpoint is None
    fresh = RunSection(name="other", directory=tmp_path)
    open_run(Config(run=fresh), fresh, RunOptions(dry_run=True))
    assert not (tmp_path / "other").exists()


def test_a_part_that_the_checkpoint_lacks_is_an_error(tmp_path: Path):
    Stage(tmp_path).run()
    opened = Stage(tmp_path, resume=True).opened
    with pytest.raises(CheckpointError, match="lacks the part ema"):
        Loop("sft", opened, 6, {"counter": Counter(), "ema": Counter()}, DIGESTS)


def test_three_skipped_steps_in_a_row_end_the_run(tmp_path: Path):
    stage = Stage(tmp_path)
    stage.skip = {0, 1, 3, 4, 5}
    with pytest.raises(NotFinite, match="not finite 3 steps in a row, up to step 6") as caught:
        stage.run()
    assert caught.value.exit_code == 70


def test_skipped_steps_are_counted_across_a_restart(tmp_path: Path):
    stage = Stage(tmp_path)
    stage.skip, stage.stop_after = {1, 2}, 3
    with pytest.raises(Stopped):
        stage.run()
    assert [line["skipped_updates"] for line in read_lines(tmp_path / "r" / "metrics.jsonl")] == [0, 1, 2]
    again = Stage(tmp_path, resume=True)
    again.skip = {3}
    with pytest.raises(NotFinite):
        again.run()


def test_what_is_found_out_when_no_step_is_left_is_kept_too(tmp_path: Path):
    """A run that gave up while its last step was judged judges it when it goes on."""
    Stage(tmp_path, total=2).run()
    stage = Stage(tmp_path, total=2, resume=True)

    def judge() -> Mapping[str, float]:
        stage.counter.value = 99
        return {"validation/loss": 1.0}

    stage.loop.run(stage.take_step, stage.after_step, {}, judge)
    newest = checkpoints.latest_whole(tmp_path / "r" / "checkpoints")
    assert newest is not None and checkpoints.load_part(newest, "counter")["value"] == 99
    assert saved(tmp_path) == [2]


def test_metrics_are_served_while_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    stage = Stage(tmp_path, total=1)
    options = RunOptions(metrics_address="127.0.0.1:0")
    opened = replace(stage.opened, options=options)
    loop = Loop("sft", opened, 1, {}, {})
    loop.run(stage.take_step, stage.after_step, {})
    assert capsys.readouterr().out.startswith("metrics on 127.0.0.1:")


@pytest.mark.parametrize(
    "how",
    [
        {"insecure": True},
        {"tls_cert": Path("tls.crt"), "tls_key": Path("tls.key"), "metrics_plaintext": True},
    ],
    ids=["without TLS", "with it"],
)
def test_metrics_are_for_other_machines_in_plaintext_where_that_is_asked_for(
    tmp_path: Path, how: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    stage = Stage(tmp_path, total=0)
    beyond = RunOptions(metrics_address="0.0.0.0:0")
    with pytest.raises(ConfigError, match=r"--metrics-address 0\.0\.0\.0:0 can be reached .* --insecure"):
        Loop("sft", replace(stage.opened, options=beyond), 0, {}, {}).run(
            stage.take_step, stage.after_step, {}
        )
    opened = replace(stage.opened, options=replace(beyond, **how))
    Loop("sft", opened, 0, {}, {}).run(stage.take_step, stage.after_step, {})
    assert capsys.readouterr().out.startswith("metrics on 0.0.0.0:")


def test_a_signal_is_a_wish_only_inside():
    with StopSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested


def test_outputs_are_replaced_whole(tmp_path: Path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "b").write_text("b")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a").write_text("a")
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "b"]


def test_json_is_written_whole_and_read_back(tmp_path: Path):
    path = tmp_path / "x.json"
    assert read_json(path) == {}
    write_json(path, {"a": [1, "é"]})
    assert read_json(path) == {"a": [1, "é"]}
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"x\.json can't be read"):
        read_json(path)


def test_a_model_is_exported_over_half_an_export(tmp_path: Path, tiny_policy: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    half = tmp_path / ".tmp-policy"
    half.mkdir()
    (half / "junk").write_text("x")
    export_model(model, AutoTokenizer.from_pretrained(tiny_policy), tmp_path / "policy")
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert not (tmp_path / "policy" / "junk").exists()
    assert (
        AutoModelForCausalLM.from_pretrained(tmp_path / "policy").num_parameters() == model.num_parameters()
    )
