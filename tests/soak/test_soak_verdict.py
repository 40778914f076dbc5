"""What makes a soak fail, and how its report reads."""

from types import SimpleNamespace

import pytest

from soak import verdict
from soak.site import Footprint
from soak.verdict import MIB, Growth

BEGIN, END = verdict.markers("soak")


def kind(sent=3, answered=3, rejected=0, failed=0, wrong=(), late=(), is_bad=False):
    counts = {"sent": sent, "answered": answered, "rejected": rejected, "failed": failed}
    tally = SimpleNamespace(
        counts=counts,
        adds_up=sent == answered + rejected + failed,
        wrong=list(wrong),
        late=list(late),
        causes=SimpleNamespace(most_common=lambda: [("Unavailable", failed)] if failed else []),
    )
    return SimpleNamespace(name="Score", tally=tally, is_bad=is_bad)


def held(memory=100, files=20, threads=30, tasks=9):
    return Footprint(7, memory * MIB, files, threads, tasks)


def test_all_is_well():
    assert list(verdict.of_calls([kind(), kind(sent=4, failed=1)])) == []
    assert list(Growth("reward", held(), held(memory=180, files=50, threads=38, tasks=41)).problems) == []


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        (kind(sent=4), "doesn't add up"),
        (kind(wrong=["[1.0]"]), "1 wrong answers, such as [1.0]"),
        (kind(late=[11.0, 12.5]), "2 calls later than may be, up to 12.5 s"),
        (kind(answered=0, failed=3), "not one call went as it should"),
        (kind(is_bad=True), "not one call went as it should"),
    ],
)
def test_calls_that_fail_a_soak(calls, words):
    (problem,) = verdict.of_calls([calls])
    assert words in problem


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (held(memory=190), "reward: 100 MiB grew to 190"),
        (held(files=60), "reward: 20 open files grew to 60"),
        (held(threads=50), "reward: 30 threads grew to 50"),
        (held(tasks=99), "reward: 9 tasks grew to 99"),
    ],
)
def test_growth_that_fails_a_soak(after, words):
    assert list(Growth("reward", held(), after).problems) == [words]


def test_the_report_takes_the_place_of_the_last_one(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    text = verdict.report(
        ["seed 3"], [kind(sent=4, failed=1)], [Growth("reward", held(), held(101))], {"kill (policy)": 1}, []
    )
    verdict.write(page, "soak", text)
    written = page.read_text()
    assert written.startswith(f"before\n{BEGIN}\n- seed 3\n")
    assert "| Score | 4 | 3 | 0 | 1 | Unavailable 1 |" in written
    assert "| reward | 100 → 101 | 20 → 20 | 30 → 30 | 9 → 9 |" in written
    assert "| kill (policy) | 1 |" in written
    assert "**Passed.**" in written
    assert "old" not in written
    assert written.endswith(f"{END}\nafter\n")


def test_a_report_says_what_failed():
    text = verdict.report([], [], [], {}, ["Score: 1 wrong answers"])
    assert text.endswith("**Failed:**\n- Score: 1 wrong answers")


def test_a_page_without_a_place_for_it(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(SystemExit, match="has to have the lines"):
        verdict.write(page, "soak", "text")
