"""What came out of a quickstart: summary.json, report.html, and the table at the end."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import prepare
from stages import Stages

from lm.placement import choose_placement
from trainer.metrics_file import FILE_NAME, read_lines
from trainer.outputs import read_json, write_json
from trainer.progress import show_table
from trainer.report.build import Accuracy, build_report

SUMMARY, REPORT = "summary.json", "report.html"
PACKAGES = ("torch", "transformers", "grpcio", "protobuf")
STEPS_AT_THE_END = 5


def write(stages: Stages) -> None:
    """Writes summary.json and report.html from what the stages left."""
    folder = stages.folder
    summary = _summary(stages)
    write_json(folder / SUMMARY, summary)
    ranking = read_json(folder / "stages/reward-model/evaluation.json")
    build_report(
        folder / REPORT,
        title="Film reviews: PPO against SFT",
        facts=_facts(summary),
        accuracies=[
            _accuracy(ranking["validation"], "test sentences", ranking["human_ceiling"]),
            _accuracy(ranking["heldout_labelers"], "the same by the other raters", None),
        ],
        evaluations={"PPO against SFT": folder / "stages/evaluate/evaluation.json"},
        metrics={
            "PPO": folder / FILE_NAME,
            "Reward model": folder / "stages/reward-model" / FILE_NAME,
            "Supervised fine-tuning": folder / "stages/sft" / FILE_NAME,
        },
    )


def _summary(stages: Stages) -> dict[str, Any]:
    folder = stages.folder
    run = read_json(folder / "run.json")
    evaluation = read_json(folder / "stages/evaluate/evaluation.json")
    ranking = read_json(folder / "stages/reward-model/evaluation.json")
    judge, lexicon = evaluation["judges"]["judge"], evaluation["judges"]["lexicon"]
    sft, ppo = evaluation["a"], evaluation["b"]
    return {
        "seed": stages.seed,
        "wall_seconds": round(sum(stages.seconds.values()), 1),
        "seconds": {part: round(seconds, 1) for part, seconds in stages.seconds.items()},
        "judged_weights": run["judged_weights"],
        "rm_accuracy": {
            **_interval(ranking["validation"]["accuracy"], pairs=ranking["validation"]["pairs"]),
            "ceiling": ranking["human_ceiling"],
        },
        "judge_accuracy": read_json(stages.judge / "judge.json")["accuracy"],
        "judge": {"sft": judge["a"]["mean"], "ppo": judge["b"]["mean"], "best_of_4": judge["best_of_n_mean"]},
        "win_rate_vs_sft": _interval(judge["win_rate"]),
        "win_rate_at_equal_length": _interval(judge["length_controlled_win_rate"]),
        "win_rate_lexicon": _interval(lexicon["win_rate"]),
        "win_rate_best_of_4": _interval(judge["best_of_n"]),
        "win_rate_sft_vs_sft": _interval(judge["control"]),
        "kl_per_sequence": evaluation["kl"]["mean"],
        "kl_last_steps": _last_kl(folder),
        "eos_rate": ppo["eos_rate"],
        "eos_rate_sft": sft["eos_rate"],
        "length": {"sft": sft["length_mean"], "ppo": ppo["length_mean"]},
        "distinct_2": {"sft": sft["distinct_2"], "ppo": ppo["distinct_2"]},
        "steps": run["steps"],
        "machine": f"{platform.machine()}, {choose_placement()}",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def _interval(estimate: Mapping[str, Any], **more: object) -> dict[str, Any]:
    return {key: estimate[key] for key in ("mean", "low", "high", "n")} | more


def _accuracy(found: Mapping[str, Any], label: str, ceiling: float | None) -> Accuracy:
    estimate = found["accuracy"]
    return Accuracy(label, estimate["mean"], estimate["low"], estimate["high"], found["pairs"], ceiling)


def _last_kl(folder: Path) -> list[float]:
    """Mean KL per sequence of the last training steps, in nats: whether it has levelled off."""
    lines = [line["objective/kl"] for line in read_lines(folder / FILE_NAME) if "objective/kl" in line]
    return [round(kl, 3) for kl in lines[-STEPS_AT_THE_END:]]


def _facts(summary: Mapping[str, Any]) -> dict[str, object]:
    rates = ("win_rate_vs_sft", "win_rate_lexicon", "win_rate_best_of_4", "win_rate_sft_vs_sft")
    return {
        "what": "SmolLM2-135M-Instruct (dequantised from 4 bits), taught to sound more positive",
        "data": prepare.CITATION,
        "seed": summary["seed"],
        "computing time": f"{summary['wall_seconds'] / 60:.1f} minutes, {summary['machine']}",
        **{name.replace("_", " "): _readable(summary[name]) for name in rates},
        "KL, nats per sequence": summary["kl_per_sequence"],
        "judged weights": summary["judged_weights"],
        **summary["versions"],
    }


def show(folder: Path) -> None:
    """Prints the table that ends a quickstart."""
    summary = read_json(folder / SUMMARY)
    accuracy, judge, distinct = summary["rm_accuracy"], summary["judge"], summary["distinct_2"]
    length = summary["length"]
    rows = [
        (
            "reward model: pairs ordered as people do",
            _readable(accuracy),
            f"people {accuracy['ceiling']:.3f}",
        ),
        ("judge: PPO wins over SFT", _readable(summary["win_rate_vs_sft"]), "0.5 is no difference"),
        ("the same, lengths held equal", _readable(summary["win_rate_at_equal_length"]), ""),
        ("lexicon: PPO wins over SFT", _readable(summary["win_rate_lexicon"]), ""),
        (
            "judge: best of 4 by the reward model wins",
            _readable(summary["win_rate_best_of_4"]),
            "no training",
        ),
        ("judge: SFT against SFT", _readable(summary["win_rate_sft_vs_sft"]), "the control"),
        ("judge's mean, −4 to 4", f"{judge['ppo']:.3f}", f"SFT {judge['sft']:.3f}"),
        ("KL from SFT, nats per sequence", f"{summary['kl_per_sequence']:.2f}", ""),
        ("distinct-2", f"{distinct['ppo']:.3f}", f"SFT {distinct['sft']:.3f}"),
        ("ended by itself", f"{summary['eos_rate']:.3f}", f"SFT {summary['eos_rate_sft']:.3f}"),
        ("length, tokens", f"{length['ppo']:.1f}", f"SFT {length['sft']:.1f}"),
    ]
    minutes = summary["wall_seconds"] / 60
    title = f"Film reviews, seed {summary['seed']}: {minutes:.1f} minutes of computing"
    show_table(title, ("", "result (95 % interval)", "beside it"), rows)
    print(f"summary: {folder / SUMMARY}\nreport:  {folder / REPORT}")


def _readable(estimate: Mapping[str, float]) -> str:
    return f"{estimate['mean']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"
