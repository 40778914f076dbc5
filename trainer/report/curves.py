"""Which curves of metrics.jsonl a person looks at, in what order, under what name and unit."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trainer.report.charts import Line, line_chart


@dataclass(frozen=True)
class Curve:
    """One chart: metrics that share a unit."""

    title: str
    unit: str
    metrics: Mapping[str, str]
    """Metric name → label."""
    meaning: str
    log_y: bool = False


CURVES = (
    Curve(
        "Reward",
        "normalised reward",
        {"objective/scores": "reward model's score", "objective/rlhf_reward": "with the KL penalty"},
        "What PPO maximises.",
    ),
    Curve(
        "KL from the reference",
        "nats per sequence",
        {"objective/kl": "training prompts", "eval/kl": "held-out prompts"},
        "How far the policy has moved; it should level off.",
    ),
    Curve(
        "Held-out score",
        "judges' mean score",
        {"eval/scores": "reward model", "eval/judge": "judge of best_by"},
        "On prompts that are not trained on, at the run's evaluations.",
    ),
    Curve(
        "Held-out win rate",
        "share of prompts",
        {"eval/win_rate": "against the first evaluation"},
        "By the judge of best_by; 0.5 is no difference.",
    ),
    Curve("KL coefficient β", "1", {"objective/kl_coef": "β"}, "Weight of the KL penalty."),
    Curve(
        "Entropy",
        "nats per token",
        {"policy/entropy_avg": "entropy"},
        "A fall to zero means that the policy repeats itself.",
    ),
    Curve(
        "Value fit",
        "explained variance",
        {"val/explained_variance": "explained variance"},
        "1 is a perfect critic, 0 is no better than the mean return.",
    ),
    Curve(
        "Response length", "tokens", {"response_length/mean": "mean"}, "Reward models can be won by length."
    ),
    Curve(
        "Ended by EOS",
        "share of responses",
        {"val/eos_rate": "training prompts", "eval/eos_rate": "held-out prompts"},
        "Responses that end by themselves.",
    ),
    Curve(
        "Losses",
        "loss",
        {"loss/policy_avg": "policy", "loss/value_avg": "value", "loss/ptx": "pretraining"},
        "Of the PPO update.",
    ),
    Curve(
        "Clipped",
        "share of tokens",
        {"policy/clipfrac_avg": "ratio", "val/clipfrac_avg": "value"},
        "Tokens on which a clip was active.",
    ),
    Curve(
        "Generator against learner",
        "nats per token",
        {"mismatch/logprob_abs_mean": "mean difference", "mismatch/logprob_abs_max": "largest difference"},
        "Difference of log-probabilities on sampled tokens, same weights.",
        log_y=True,
    ),
    Curve(
        "Loss",
        "nats",
        {"train/loss": "training", "validation/loss": "validation"},
        "Cross-entropy, or of the rankings.",
    ),
    Curve(
        "Pair accuracy",
        "share of pairs",
        {
            "train/accuracy": "training",
            "validation/accuracy": "validation",
            "heldout_labelers/accuracy": "held-out labelers",
        },
        "Pairs whose better answer scores higher.",
    ),
)


@dataclass(frozen=True)
class Chart:
    """A curve as the page shows it."""

    title: str
    meaning: str
    svg: str
    rows: Sequence[tuple[str, ...]]
    """(label, first, last, smallest, largest) of each line, for those who don't see the chart."""


def charts(records: Sequence[Mapping[str, float]]) -> Iterator[Chart]:
    """One chart for each of CURVES that has values."""
    for curve in CURVES:
        lines = [line for line in (_line(records, *item) for item in curve.metrics.items()) if line.x]
        if lines:
            positive = all(min(line.y) > 0 for line in lines)
            svg = line_chart(lines, "step", curve.unit, curve.log_y and positive)
            yield Chart(curve.title, curve.meaning, svg, [_summary(line) for line in lines])


def _line(records: Sequence[Mapping[str, float]], name: str, label: str) -> Line:
    points = [(record["step"], record[name]) for record in records if _is_number(record.get(name))]
    return Line(label, [step for step, _ in points], [value for _, value in points])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _summary(line: Line) -> tuple[str, ...]:
    return (line.label, *(f"{value:.4g}" for value in (line.y[0], line.y[-1], min(line.y), max(line.y))))
