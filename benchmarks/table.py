"""Results as Markdown, and where they stand in a page."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.measures import Spread, percentile
from benchmarks.results import Passes, Results

BEGIN = "<!-- scorer: written by benchmarks/scorer.py -->"
END = "<!-- scorer: end -->"
LOOP_TARGET, BETTER_LOOP_TARGET, PADDED_TARGET, OVERHEAD_TARGET_MS, LOAD_TARGET = 0.9, 0.95, 1.5, 3.0, 3.0


def render(results: Results, setting: Sequence[str]) -> str:
    """Both tables, below the lines of `setting`: machine, versions, date, command."""
    notes = [f"- {one.name}: {one.note}." for one in results.passes]
    return "\n".join(
        [*(f"- {line}" for line in setting), "", *_throughput(results), "", *notes, "", *_targets(results)]
    )


class PageError(Exception):
    """A page that the tables can't be put into; the message says what it lacks."""


def around_markers(page: Path) -> tuple[str, str]:
    """What stands before and after the tables, the markers included. Raises PageError."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise PageError(f"{page} has to have the lines\n{BEGIN}\n{END}")
    return before + begin, end + after


def write_between_markers(page: Path, tables: str) -> None:
    """Puts the tables in the place of what was there. Raises PageError."""
    before, after = around_markers(page)
    page.write_text(f"{before}\n{tables}\n{after}", encoding="utf-8")


def workload_line(lengths: Sequence[int]) -> str:
    """How many texts, and how long."""
    return (
        f"{len(lengths)} texts of {min(lengths)} to {max(lengths)} tokens, median {median(lengths):.0f}, "
        f"90th percentile {percentile(lengths, 0.9)}, {sum(lengths)} in all"
    )


def _throughput(results: Results) -> list[str]:
    head = ["", "texts/s", "tokens/s", "× sorted loop", "× padded loop", "largest difference of a score"]
    return _table(head, [_throughput_row(results, one) for one in results.passes])


def _throughput_row(results: Results, one: Passes) -> list[str]:
    tokens = sum(results.lengths)
    return [
        one.name,
        Spread.of(one.rates(len(results.lengths))).text(1),
        f"{Spread.of(one.rates(tokens)).median:.0f}",
        one.times_as_fast_as(results.loop).text(2),
        one.times_as_fast_as(results.padded).text(2),
        "–" if one is results.loop else _difference(one.difference),
    ]


def _difference(value: float) -> str:
    return "not a number" if math.isnan(value) else f"{value:.0e}"


def _targets(results: Results) -> list[str]:
    loop = results.stream.times_as_fast_as(results.loop)
    padded = results.stream.times_as_fast_as(results.padded)
    overhead = Spread.of([one.milliseconds for one in results.overheads])
    bare = median(seconds for one in results.overheads for seconds in one.bare) * 1000
    load, padding = results.under_load, results.padding
    rows = [
        ["score_many against the sorted loop", loop.text(2), f"≥ {LOOP_TARGET}, better {BETTER_LOOP_TARGET}",
         _loop_verdict(loop.median)],
        ["score_many against the padded loop", padded.text(2), f"≥ {PADDED_TARGET}",
         _met(padded.median >= PADDED_TARGET)],
        ["padding in what score_many has computed", f"{padding.streamed:.1%}",
         f"none worth naming; sorted loop {padding.sorted:.1%}, padded loop {padding.arrival:.1%}", ""],
        [f"one item: p50 of a call less the bare forward of its text ({bare:.1f} ms)",
         f"{overhead.text(1)} ms", f"≤ {OVERHEAD_TARGET_MS:g} ms",
         _met(overhead.median <= OVERHEAD_TARGET_MS)],
        [f"one item beside a full stream: p99 of {len(load.calls)} calls "
         f"({percentile(load.calls, 0.99):.2f} s) over the stream's median batch "
         f"({median(load.batches):.2f} s)",
         f"{load.ratio:.2f}", f"≤ {LOAD_TARGET:g}",
         _met(load.ratio <= LOAD_TARGET)],
    ]  # fmt: skip
    return _table(["", "measured", "target", "met"], rows)


def _loop_verdict(ratio: float) -> str:
    return "yes, the better one" if ratio >= BETTER_LOOP_TARGET else _met(ratio >= LOOP_TARGET)


def _met(met: bool) -> str:
    return "yes" if met else "**no**"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
