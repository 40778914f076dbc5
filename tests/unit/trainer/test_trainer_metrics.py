import json
import math
import urllib.request
from pathlib import Path
from typing import get_args

import pytest

from trainer.config import RunOptions
from trainer.errors import ConfigError
from trainer.metrics import TABLES, RunMetrics, Stage, prometheus_name
from trainer.metrics_file import read_lines


def exported(metrics: RunMetrics, name: str) -> float | None:
    return metrics.registry.get_sample_value(name)


def test_a_step_goes_to_prometheus_and_to_the_file(tmp_path: Path):
    with RunMetrics("ppo", tmp_path) as metrics:
        metrics.log(3, {"objective/kl": 4.25, "lr": 1e-5})
        assert exported(metrics, "plaudit_ppo_objective_kl") == 4.25
        assert exported(metrics, "plaudit_ppo_step") == 3
        assert metrics.latest["objective/kl"] == 4.25
        (line,) = read_lines(tmp_path / "metrics.jsonl")
    assert line["step"] == 3
    assert line["objective/kl"] == 4.25
    assert line["lr"] == 1e-5
    assert exported(metrics, "plaudit_ppo_last_step_timestamp_seconds") == line["time"]


def test_what_changes_by_itself_is_looked_at_when_it_is_asked_for(tmp_path: Path):
    with RunMetrics("ppo", tmp_path) as metrics:
        assert exported(metrics, "plaudit_ppo_waiting_reward") == 0
        away = ["reward"]
        metrics.watch("waiting/reward", lambda: float("reward" in away))
        assert exported(metrics, "plaudit_ppo_waiting_reward") == 1
        away.clear()
        assert exported(metrics, "plaudit_ppo_waiting_reward") == 0


def test_lines_are_flushed_as_they_come(tmp_path: Path):
    with RunMetrics("sft", tmp_path) as metrics:
        metrics.log(1, {"train/loss": 2.0})
        assert json.loads((tmp_path / "metrics.jsonl").read_text())["train/loss"] == 2.0


def test_only_names_of_the_table(tmp_path: Path):
    with RunMetrics("sft", tmp_path) as metrics:
        with pytest.raises(KeyError, match=r"not in the table of sft metrics: objective/kl, tarin/loss"):
            metrics.log(1, {"tarin/loss": 1.0, "objective/kl": 2.0, "lr": 1.0})
        with pytest.raises(KeyError):
            metrics.count("lr")
    assert read_lines(tmp_path / "metrics.jsonl") == []


def test_what_is_not_finite_is_null_in_the_file_and_nan_outside(tmp_path: Path):
    with RunMetrics("sft", tmp_path) as metrics:
        metrics.log(1, {"grad_norm": math.nan, "train/loss": math.inf})
        value = exported(metrics, "plaudit_sft_grad_norm")
    assert value is not None
    assert math.isnan(value)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert json.loads(text)["train/loss"] is None


def test_counters_grow_and_stand_in_every_line(tmp_path: Path):
    with RunMetrics("sft", tmp_path) as metrics:
        metrics.log(1, {})
        metrics.count("skipped_updates")
        metrics.count("skipped_updates", 2)
        metrics.log(2, {})
        assert exported(metrics, "plaudit_sft_skipped_updates_total") == 3
    assert [line["skipped_updates"] for line in read_lines(tmp_path / "metrics.jsonl")] == [0, 3]


def test_a_resumed_run_goes_on_behind_its_step(tmp_path: Path):
    with RunMetrics("sft", tmp_path) as metrics:
        for step in (1, 2, 3, 4):
            metrics.count("skipped_updates")
            metrics.log(step, {"train/loss": float(step)})
    with RunMetrics("sft", tmp_path, resume_step=2) as metrics:
        assert metrics.latest["train/loss"] == 2.0
        assert exported(metrics, "plaudit_sft_train_loss") == 2.0
        assert exported(metrics, "plaudit_sft_skipped_updates_total") == 2
        metrics.log(3, {"train/loss": 30.0})
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["train/loss"], line["skipped_updates"]) for line in lines] == [
        (1, 1.0, 1),
        (2, 2.0, 2),
        (3, 30.0, 2),
    ]


def test_a_line_cut_by_a_kill_is_left_out(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 0, "train/loss": 1.0}\n{"step": 2, "ti')
    with RunMetrics("sft", tmp_path, resume_step=2):
        pass
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1]


def test_a_new_run_starts_a_new_file(tmp_path: Path):
    for _ in range(2):
        with RunMetrics("sft", tmp_path / "deep" / "run") as metrics:
            metrics.log(1, {})
    assert len(read_lines(tmp_path / "deep" / "run" / "metrics.jsonl")) == 1


def test_no_file_has_no_lines(tmp_path: Path):
    assert read_lines(tmp_path / "metrics.jsonl") == []


def test_metrics_are_served(tmp_path: Path):
    with RunMetrics("reward_model", tmp_path) as metrics:
        address = metrics.serve(RunOptions(metrics_address="127.0.0.1:0"))
        metrics.log(1, {"validation/accuracy": 0.75})
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        with pytest.raises(ConfigError, match=f"--metrics-address: {address}: .*in use"):
            metrics.serve(RunOptions(metrics_address=address))
    assert "plaudit_reward_model_validation_accuracy 0.75" in text
    assert "process_resident_memory_bytes" in text


def test_the_process_says_what_it_is_and_what_it_pushed(tmp_path: Path):
    with RunMetrics("ppo", tmp_path) as metrics:
        (build,) = (family for family in metrics.registry.collect() if family.name == "plaudit_build_info")
        assert build.samples[0].labels.keys() == {"version", "python", "grpc"}
        assert exported(metrics, "plaudit_model_step") is None
        for step, digest in ((3, "a"), (4, "b")):
            metrics.model.set("sft", digest, "t", "float32", run_id="r", step=step)
        assert exported(metrics, "plaudit_model_step") == 4
        (info,) = (family for family in metrics.registry.collect() if family.name == "plaudit_model_info")
        assert [sample.labels["weights_sha256"] for sample in info.samples] == ["b"]


@pytest.mark.parametrize("address", ["", "9000", ":9000", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:99999"])
def test_an_address_that_is_none(tmp_path: Path, address: str):
    with RunMetrics("sft", tmp_path) as metrics, pytest.raises(ConfigError, match="--metrics-address"):
        metrics.serve(RunOptions(metrics_address=address))


@pytest.mark.parametrize("address", ["0.0.0.0:0", "example.invalid:0"])
def test_other_machines_need_insecure(tmp_path: Path, address: str):
    with RunMetrics("sft", tmp_path) as metrics, pytest.raises(ConfigError, match="add --insecure"):
        metrics.serve(RunOptions(metrics_address=address))


def test_insecure_opens_to_other_machines(tmp_path: Path):
    with RunMetrics("sft", tmp_path) as metrics:
        beyond = RunOptions(metrics_address="0.0.0.0:0", insecure=True)
        assert metrics.serve(beyond).startswith("0.0.0.0:")
        assert metrics.serve(RunOptions(metrics_address="localhost:0")).startswith("localhost:")


@pytest.mark.parametrize("stage", get_args(Stage))
def test_the_table_is_one_name_one_help_one_export(stage: Stage):
    table = TABLES[stage]
    names = [metric.name for metric in table]
    assert len(set(names)) == len(names)
    assert len({prometheus_name(stage, name) for name in names}) == len(names)
    assert all(metric.help and not metric.help.endswith(".") for metric in table)


RECIPE_SECTION_4 = """\
objective/kl objective/entropy policy/entropy_avg objective/scores objective/non_score_reward
objective/rlhf_reward objective/kl_coef policy/approxkl_avg policy/clipfrac_avg val/clipfrac_avg val/ratio
val/ratio_var loss/policy_avg loss/value_avg loss/ptx val/explained_variance val/num_eos_tokens val/eos_rate
response_length/mean response_length/max response_length/clip_ratio mismatch/logprob_abs_mean
mismatch/logprob_abs_max mismatch/kl policy_lag grad_norm/policy grad_norm/value grad_norm/ptx lr episode eps
"""


def test_the_recipe_is_covered():
    assert set(RECIPE_SECTION_4.split()) <= {metric.name for metric in TABLES["ppo"]}
    sft = {metric.name for metric in TABLES["sft"]}
    for where in ("train", "validation"):
        assert {f"{where}/{name}" for name in ("loss", "perplexity", "token_accuracy", "eos_accuracy")} <= sft
    reward = {metric.name for metric in TABLES["reward_model"]}
    names = ("loss", "accuracy", "margin", "chosen_mean", "rejected_mean", "calibration_error", "reward_mean")
    for where in ("train", "validation", "heldout_labelers"):
        assert {f"{where}/{name}" for name in names} <= reward
