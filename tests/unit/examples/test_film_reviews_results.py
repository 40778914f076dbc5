"""The summary, the page and the table of a quickstart, from what its stages leave."""

import json
from pathlib import Path
from typing import Any

import pytest
import results
from stages import Stages

from trainer.outputs import read_json, write_json


def estimate(mean: float, n: int = 256) -> dict[str, Any]:
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": n, "method": "bootstrap"}


def verdict(win_rate: float) -> dict[str, Any]:
    return {
        "a": estimate(0.1), "b": estimate(0.9), "unscored": 0, "win_rate": estimate(win_rate),
        "length_controlled_win_rate": estimate(win_rate - 0.02), "control": estimate(0.5),
        "best_of_n": estimate(0.65, 128), "best_of_n_mean": 0.4,
    }  # fmt: skip


def policy(label: str, distinct_2: float, eos_rate: float) -> dict[str, Any]:
    return {
        "label": label, "length_mean": 12.5, "eos_rate": eos_rate, "distinct_1": 0.5,
        "distinct_2": distinct_2, "entropy": 2.5,
    }  # fmt: skip


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    """A seed whose stages have all ended."""
    write_json_into = {
        "run.json": {"judged_weights": "live", "steps": 18},
        "seconds.json": {"data": 1.04, "sft": 60.0, "ppo": 239.0},
        "stages/reward-model/evaluation.json": {
            "human_ceiling": 0.919,
            "validation": {"accuracy": estimate(0.81, 175), "pairs": 3390},
            "heldout_labelers": {"accuracy": estimate(0.82, 175), "pairs": 3389},
        },
        "stages/evaluate/evaluation.json": {
            "a": policy("SFT", 0.9, 0.875), "b": policy("PPO", 0.85, 0.97), "seed": 3, "kl": estimate(4.2),
            "kl_reason": "", "prompts": {"path": "p.jsonl", "count": 256}, "samples": [],
            "judges": {"judge": verdict(0.8), "lexicon": verdict(0.7), "reward": verdict(0.85)},
            "best_of_n": {"n": 4, "judge": "reward", "prompts": 128, "kl_bound": 0.636, "win_bound": 0.8},
        },
        "../cache/judge/judge.json": {"accuracy": {"mean": 0.79, "pairs": 3389}},
    }  # fmt: skip
    folder = tmp_path / "quickstart-seed3"
    for name, content in write_json_into.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_json(folder / name, content)
    steps = [{"step": step, "objective/kl": step / 10, "objective/scores": 1.0} for step in range(1, 9)]
    lines = [{"step": 0, "eval/kl": 0.0}, *steps]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return Stages(folder, tmp_path / "cache", seed=3)


def test_the_summary_holds_what_outside_checks_read(stages: Stages):
    results.write(stages)
    summary = read_json(stages.folder / "summary.json")
    interval = {"mean": 0.8, "low": 0.75, "high": 0.8500000000000001, "n": 256}
    assert summary["seed"] == 3
    assert summary["wall_seconds"] == 300.0
    assert summary["judged_weights"] == "live"
    assert summary["rm_accuracy"]["mean"] == 0.81
    assert summary["rm_accuracy"]["pairs"] == 3390
    assert summary["rm_accuracy"]["ceiling"] == 0.919
    assert summary["judge"] == {"sft": 0.1, "ppo": 0.9, "best_of_4": 0.4}
    assert summary["win_rate_vs_sft"] == interval
    assert summary["win_rate_lexicon"]["mean"] == 0.7
    assert summary["win_rate_best_of_4"]["n"] == 128
    assert summary["win_rate_sft_vs_sft"]["mean"] == 0.5
    assert summary["kl_per_sequence"] == 4.2
    assert summary["kl_last_steps"] == [0.4, 0.5, 0.6, 0.7, 0.8]
    assert summary["eos_rate"] == 0.97
    assert summary["distinct_2"] == {"sft": 0.9, "ppo": 0.85}


def test_the_page_shows_every_stage_and_the_ceiling(stages: Stages):
    results.write(stages)
    page = (stages.folder / "report.html").read_text()
    for text in ("people (test sentences)", "PPO against SFT", "Supervised fine-tuning", "Hutto", "0.800"):
        assert text in page


def test_the_same_files_give_the_same_page(stages: Stages):
    results.write(stages)
    first = (stages.folder / "report.html").read_bytes()
    results.write(stages)
    assert (stages.folder / "report.html").read_bytes() == first


def test_the_table_says_it_with_intervals(stages: Stages, capsys: pytest.CaptureFixture[str]):
    results.write(stages)
    results.show(stages.folder)
    shown = capsys.readouterr().out
    assert "seed 3: 5.0 minutes of computing" in shown
    assert "0.800 (0.750 to 0.850)" in shown
    assert "people 0.919" in shown
    assert str(stages.folder / "report.html") in shown.replace("\n", "")
