"""The tables, from made-up figures, and where they go in a page."""

import math
from dataclasses import replace

import pytest

from benchmarks import machine, table
from benchmarks.results import Overhead, Padding, Passes, Results, Settings, UnderLoad

SETTINGS = Settings("some/rm", "float32", 2, texts=4, rounds=3, singles=100, batch_size=16, seed=0)
RESULTS = Results(
    SETTINGS,
    lengths=[10, 20, 30, 40],
    passes=[
        Passes("sorted", "the first", (1.0, 2.0, 4.0), 0.0),
        Passes("padded", "the second", (2.0, 4.0, 8.0), 3e-6),
        Passes("ours", "the third", (1.0, 2.0, 5.0), 2e-6),
        Passes("broken", "gives no numbers", (1.0, 1.0, 1.0), math.nan),
    ],
    padding=Padding(streamed=0.031, sorted=0.05, arrival=0.4),
    overheads=[Overhead([0.010, 0.020], [0.012, 0.022]), Overhead([0.010], [0.013])],
    under_load=UnderLoad(calls=[0.1] * 98 + [0.5, 0.9], batches=[0.2] * 100),
)


def test_overhead_is_that_of_each_text_and_not_of_the_middle_ones():
    assert Overhead([0.010, 0.100, 0.030], [0.012, 0.103, 0.090]).milliseconds == pytest.approx(3.0)


def row(text, name):
    """Cells of the one row that begins so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"# Before\n\n{table.BEGIN}\nold\n{table.END}\n\nAfter.\n", encoding="utf-8")
    return path


class TestThroughput:
    def test_rates_are_medians_with_their_range(self):
        # 4 texts and 100 tokens in 1, 2 and 4 seconds.
        cells = row(table.render(RESULTS, []), "sorted")
        assert cells[1:3] == ["2.0 (1.0–4.0)", "50"]

    def test_ratios_are_paired(self):
        cells = row(table.render(RESULTS, []), "ours")
        assert cells[3:5] == ["1.00 (0.80–1.00)", "2.00 (1.60–2.00)"]

    def test_differences_are_to_the_first_which_has_none(self):
        text = table.render(RESULTS, [])
        assert [row(text, name)[5] for name in ("sorted", "padded", "broken")] == [
            "–",
            "3e-06",
            "not a number",
        ]

    def test_every_contestant_has_its_note(self):
        text = table.render(RESULTS, [])
        for one in RESULTS.passes:
            assert f"- {one.name}: {one.note}." in text


class TestTargets:
    def test_met_ones(self):
        text = table.render(RESULTS, [])
        assert row(text, "score_many against the sorted")[1:] == [
            "1.00 (0.80–1.00)", "≥ 0.9, better 0.95", "yes, the better one",
        ]  # fmt: skip
        assert row(text, "score_many against the padded")[3] == "yes"

    def test_overhead_is_the_difference_of_medians_of_each_round(self):
        cells = row(table.render(RESULTS, []), "one item: p50")
        assert cells == [
            "one item: p50 of a call less the bare forward of its text (10.0 ms)",
            "2.5 (2.0–3.0) ms",
            "≤ 3 ms",
            "yes",
        ]

    def test_under_load_it_is_the_99th_of_a_hundred_calls_over_the_median_batch(self):
        cells = row(table.render(RESULTS, []), "one item beside")
        assert cells[1:] == ["2.50", "≤ 3", "yes"]

    def test_padding_stands_beside_that_of_the_loops(self):
        cells = row(table.render(RESULTS, []), "padding")
        assert cells[1:3] == ["3.1%", "none worth naming; sorted loop 5.0%, padded loop 40.0%"]

    @pytest.mark.parametrize(
        ("seconds", "verdict"),
        [((1.0,) * 3, "yes"), ((1.0, 2.1, 4.3), "yes, the better one"), ((9,) * 3, "**no**")],
    )
    def test_verdicts_of_the_sorted_loop(self, seconds, verdict):
        ours = replace(RESULTS.passes[2], seconds=seconds)
        loop = replace(RESULTS.passes[0], seconds=(0.92,) * 3 if verdict == "yes" else (1.0, 2.0, 4.2))
        changed = replace(RESULTS, passes=[loop, RESULTS.passes[1], ours])
        assert row(table.render(changed, []), "score_many against the sorted")[3] == verdict

    def test_missed_ones_say_so(self):
        slow = replace(
            RESULTS,
            overheads=[Overhead([0.010], [0.0131])],
            under_load=UnderLoad(calls=[0.61] * 5, batches=[0.2] * 5),
            passes=[
                RESULTS.passes[0],
                RESULTS.passes[1],
                replace(RESULTS.passes[2], seconds=(2.0, 4.0, 8.0)),
            ],
        )
        text = table.render(slow, [])
        names = (
            "score_many against the sorted",
            "score_many against the padded",
            "one item: p50",
            "one item bes",
        )
        assert {row(text, name)[3] for name in names} == {"**no**"}


class TestPage:
    def test_what_is_between_the_markers_is_replaced(self, page):
        table.write_between_markers(page, "new\ntables")
        assert page.read_text(encoding="utf-8") == (
            f"# Before\n\n{table.BEGIN}\nnew\ntables\n{table.END}\n\nAfter.\n"
        )

    def test_twice_is_as_once(self, page):
        table.write_between_markers(page, "new")
        once = page.read_text(encoding="utf-8")
        table.write_between_markers(page, "new")
        assert page.read_text(encoding="utf-8") == once

    @pytest.mark.parametrize("text", ["", table.BEGIN, table.END, f"{table.END}\n{table.BEGIN}\n"])
    def test_a_page_without_both_in_this_order_is_left_alone(self, page, text):
        page.write_text(text, encoding="utf-8")
        with pytest.raises(table.PageError, match="has to have the lines"):
            table.write_between_markers(page, "new")
        assert page.read_text(encoding="utf-8") == text

    def test_a_page_that_isnt_there(self, tmp_path):
        with pytest.raises(table.PageError, match=r"none\.md"):
            table.around_markers(tmp_path / "none.md")


def test_lines_of_the_setting_stand_above_the_tables():
    lines = table.render(RESULTS, ["when", "where"]).splitlines()
    assert lines[:3] == ["- when", "- where", ""]
    assert lines[3].startswith("|")


def test_the_workload_in_a_line():
    assert table.workload_line([10, 40, 20, 30]) == (
        "4 texts of 10 to 40 tokens, median 25, 90th percentile 40, 100 in all"
    )


def test_every_version_that_may_move_a_figure_is_told():
    pytest.importorskip("sentence_transformers")
    told = machine.versions()
    assert told.startswith("Python 3.")
    for name in machine.PACKAGES:
        assert f", {name} " in told


def test_the_machine_is_described():
    assert machine.processor()
    assert machine.memory_gib() > 0.1
    assert machine.load_average() >= 0
    assert machine.now().endswith(" UTC")
