"""Puts a report together: one HTML file that needs nothing but itself."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trainer.metrics_file import read_lines
from trainer.outputs import write_text
from trainer.report.charts import Bar, interval_chart
from trainer.report.curves import charts

MAX_SAMPLES = 50
"""Samples a comparison shows at most."""


@dataclass(frozen=True)
class Accuracy:
    """Share of held-out pairs that a reward model orders as people do."""

    label: str
    mean: float
    low: float
    high: float
    n: int
    """Pairs."""
    ceiling: float | None = None
    """What people reach among themselves; unset if nobody knows."""


def build_report(
    target: Path,
    *,
    title: str,
    metrics: Mapping[str, Path] | None = None,
    evaluations: Mapping[str, Path] | None = None,
    accuracies: Sequence[Accuracy] = (),
    facts: Mapping[str, object] | None = None,
) -> Path:
    """Writes the page to `target` and returns it.

    `metrics` and `evaluations` map headings to metrics.jsonl and evaluation.json files; `facts` are
    lines of the table on top. Everything that came from outside is escaped. The same input gives
    the same bytes.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("page.html.j2").render(
        title=title,
        facts={name: _readable(value) for name, value in (facts or {}).items()},
        accuracies=accuracies,
        accuracy_chart=_accuracy_chart(accuracies),
        evaluations=[_evaluation(heading, path) for heading, path in (evaluations or {}).items()],
        runs={heading: list(charts(read_lines(path))) for heading, path in (metrics or {}).items()},
    )
    write_text(target, page)
    return target


def _readable(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _accuracy_chart(accuracies: Sequence[Accuracy]) -> str:
    if not accuracies:
        return ""
    bars = [Bar(each.label, each.mean, each.low, each.high) for each in accuracies]
    bars += [
        Bar(f"people ({each.label})", each.ceiling, each.ceiling, each.ceiling)
        for each in accuracies
        if each.ceiling is not None
    ]
    return interval_chart(bars, "share of pairs ordered as people do", reference=0.5)


def _evaluation(heading: str, path: Path) -> dict[str, Any]:
    """An evaluation.json as the template wants it."""
    evaluation: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    bars = [
        Bar(f"{label} ({name})", estimate["mean"], estimate["low"], estimate["high"])
        for name, judge in evaluation["judges"].items()
        for label, estimate in _win_rates(evaluation, judge)
    ]
    chart = interval_chart(bars, "win rate over A", reference=0.5, limits=(0, 1)) if bars else ""
    samples = evaluation["samples"][:MAX_SAMPLES]
    return {"heading": heading, "chart": chart, "rates": _rates(evaluation), **evaluation, "samples": samples}


def _rates(evaluation: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (name, label, estimate)
        for name, judge in evaluation["judges"].items()
        for label, estimate in _win_rates(evaluation, judge)
    ]


def _win_rates(evaluation: Mapping[str, Any], judge: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(what against A, estimate) of one judge, without those that were not measured."""
    best = evaluation["best_of_n"]
    rates = {
        "B": judge["win_rate"],
        "B at equal length": judge["length_controlled_win_rate"],
        "A again, other seeds": judge["control"],
        f"best of {best['n']} of A" if best else "best of n": judge["best_of_n"],
    }
    return [(label, estimate) for label, estimate in rates.items() if estimate]
