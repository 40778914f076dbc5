"""The page: complete, escaped, self-contained, small, the same for the same input."""

import json
import re
from html.parser import HTMLParser

import pytest

from trainer.metrics import TABLES
from trainer.report.build import Accuracy, build_report
from trainer.report.charts import MAX_POINTS, Bar, Line, interval_chart, line_chart, thinned
from trainer.report.curves import CURVES, charts

EVIL = "<script>alert('x')</script> & \"quotes\""
VOID = {"meta", "link", "br", "img", "input", "hr"}


def estimate(mean, method="bootstrap"):
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 40, "method": method}


@pytest.fixture
def evaluation():
    policy = {
        "label": "SFT",
        "length_mean": 12.0,
        "eos_rate": 0.9,
        "distinct_1": 0.5,
        "distinct_2": 0.8,
        "entropy": 3.0,
    }
    judge = {
        "a": estimate(0.1), "b": estimate(0.6), "win_rate": estimate(0.8, "wilson"),
        "length_controlled_win_rate": estimate(0.75), "control": estimate(0.5), "best_of_n": estimate(0.65),
    }  # fmt: skip
    return {
        "a": policy, "b": policy | {"label": EVIL}, "seed": 3, "prompts": {"path": "p.jsonl", "count": 40},
        "judges": {"people": judge}, "kl": estimate(5.0), "kl_reason": "",
        "best_of_n": {"n": 4, "judge": "people", "prompts": 16, "kl_bound": 0.636, "win_bound": 0.8},
        "samples": [{"prompt": EVIL, "a": "plain", "b": EVIL, "scores": {"people": [0.25, 0.5]}},
            {"prompt": "p", "a": "", "b": "b", "scores": {"people": [None, 0.5]}}] * 2,
    }  # fmt: skip


@pytest.fixture
def page(tmp_path, evaluation):
    metrics = tmp_path / "metrics.jsonl"
    records = [
        {"step": s, "objective/scores": s / 10, "objective/kl": 0.1 * s, "lr": 1e-5} for s in range(1, 6)
    ]
    metrics.write_text("\n".join(json.dumps(record) for record in records))
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    target = build_report(
        tmp_path / "deep" / "report.html",
        title=f"A run {EVIL}",
        metrics={"PPO": metrics},
        evaluations={"PPO against SFT": tmp_path / "evaluation.json"},
        accuracies=[Accuracy("unseen sentences", 0.8, 0.78, 0.82, 2000, ceiling=0.914)],
        facts={"seed": 3, "wall seconds": 812.34567, "note": EVIL},
    )
    return target.read_text()


class Balance(HTMLParser):
    """Holds every opened tag to be closed in order, and collects ids and text."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def parse(page):
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    return parser


def test_the_page_is_well_formed_and_no_two_ids_are_alike(page):
    ids = parse(page).ids
    assert len(ids) == len(set(ids)) > 0


def test_nothing_from_outside_becomes_markup(page):
    assert "<script" not in page
    assert "".join(parse(page).words).count("<script>alert('x')</script>") >= 6


def test_the_page_fetches_nothing_and_is_small(page):
    addresses = set(re.findall(r'https?://[^"\s]*', page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not links
    assert not re.search(r"<(link|img|iframe)|@import|url\((?!#)", page)
    assert len(page) < 200_000


def test_what_was_measured_stands_in_tables(page):
    text = " ".join(" ".join(parse(page).words).split())
    for part in (
        "0.800 0.750 to 0.850 40 wilson", "A again, other seeds", "best of 4 of A", "B at equal length",
        "5.00 (4.95 to 5.05)", "0.25, 0.50", "0.914", "812.3", "at most 0.64 nats",
        "none, 0.50", "The first 4 prompts",
    ):  # fmt: skip
        assert part in text


def test_charts_take_the_pages_colour_and_say_what_they_show(page):
    labels = re.findall(r'<svg role="img" aria-label="([^"]*)"', page)
    assert labels[0].startswith("share of pairs ordered as people do: unseen sentences 0.8 (0.78 to 0.82)")
    assert any(label == "nats per sequence over step: training prompts" for label in labels)
    assert "currentColor" in page
    assert "#123456" not in page


def test_the_same_input_gives_the_same_bytes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "objective/kl": 0.5}\n{"step": 2, "objective/kl": 0.7}\n')
    first, second = (
        build_report(tmp_path / name, title="t", metrics={"PPO": path}).read_bytes()
        for name in ("1.html", "2.html")
    )
    assert first == second


def test_an_evaluation_without_judges_kl_and_best_of_n_still_makes_a_page(tmp_path, evaluation):
    evaluation |= {"judges": {}, "kl": None, "kl_reason": "other tokenizer", "best_of_n": None}
    evaluation["samples"] = [sample | {"scores": {}} for sample in evaluation["samples"]]
    (tmp_path / "e.json").write_text(json.dumps(evaluation))
    page = build_report(tmp_path / "r.html", title="t", evaluations={"E": tmp_path / "e.json"}).read_text()
    parse(page)
    assert "other tokenizer" in page
    assert "<svg" not in page


def test_a_report_of_nothing_is_a_page_of_its_title(tmp_path):
    page = build_report(tmp_path / "r.html", title="nothing yet").read_text()
    assert " ".join("".join(parse(page).words).split()).endswith("nothing yet")


def test_a_run_without_a_step_says_so(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    page = build_report(
        tmp_path / "r.html", title="t", metrics={"PPO": tmp_path / "metrics.jsonl"}
    ).read_text()
    assert "No step was recorded." in page


def test_every_curve_is_of_metrics_that_some_stage_exports():
    known = {metric.name for table in TABLES.values() for metric in table}
    assert {name for curve in CURVES for name in curve.metrics} <= known


def test_a_curve_skips_values_that_are_no_numbers():
    records = [{"step": 1, "objective/kl": 1.0}, {"step": 2, "objective/kl": float("nan")}, {"step": 3}]
    (chart,) = charts(records)
    assert chart.rows == [("training prompts", "1", "1", "1", "1")]


def test_a_long_run_is_thinned_and_keeps_its_last_point():
    steps = list(range(20_001))
    assert len(line_chart([Line("x", steps, steps)], "step", "y")) < 30_000
    assert list(thinned(steps))[-1] == 20_000
    assert len(thinned(steps)) <= MAX_POINTS + 1
    assert thinned(steps[:MAX_POINTS]) == steps[:MAX_POINTS]


def test_a_chart_escapes_its_labels():
    for svg in (
        line_chart([Line(EVIL, [1, 2], [1, 2])], "step", "y"),
        interval_chart([Bar(EVIL, 1, 0, 2)], "x"),
    ):
        assert "<script" not in svg
