"""The column of a page that says what became of the tests that it names."""

import pytest

from soak import verdict
from soak.figures import main, outcomes

BEGIN, END = verdict.markers("figures")
PAGE = f"""{BEGIN}
{END}

| what | promise | tested by | latest figure |
|---|---|---|---|
| a kill | nothing is lost | `test_kills.py::test_at_random` | soon |
| damage | it is found | `test_damage.py`, `test_kills.py::test_last_words` | 7 passed |

| what | tested by |
|---|---|
| another | `test_kills.py` |
"""
PASSED, FAILED, SKIPPED = "", "<failure message='no'/>", "<skipped/>"


def write_xml(path, cases):
    """Of (module, name, what stands within)."""
    text = "".join(
        f'<testcase classname="tests.e2e.{module}" name="{name}">{within}</testcase>'
        for module, name, within in cases
    )
    path.write_text(f"<testsuites><testsuite>{text}</testsuite></testsuites>")
    return path


KILLS = [("test_kills", f"test_at_random[{seed}]", PASSED) for seed in range(2)]
OTHERS = [("test_kills", "test_last_words", PASSED), ("test_damage", "test_a_file", PASSED),
          ("test_damage", "test_a_clock", SKIPPED)]  # fmt: skip


@pytest.fixture
def page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    return page


def test_each_row_says_what_became_of_its_tests(page, tmp_path, capsys):
    assert main(page, "abc1234", write_xml(tmp_path / "tests.xml", KILLS + OTHERS)) == 0
    written = page.read_text()
    assert "| `test_kills.py::test_at_random` | 2 passed |" in written
    assert "`test_kills.py::test_last_words` | 2 passed, 1 skipped |" in written
    assert "| another | `test_kills.py` |\n" in written, "this table has no such column"
    assert f"{BEGIN}\nLatest figures: commit abc1234, 20" in written
    assert not capsys.readouterr().out.strip()


def test_more_seeds_of_a_second_file_count_once(page, tmp_path):
    more = [("test_kills", f"test_at_random[{seed}]", PASSED) for seed in range(30)]
    files = [
        write_xml(tmp_path / f"{name}.xml", cases) for name, cases in (("a", KILLS), ("b", more + OTHERS))
    ]
    assert main(page, "abc1234", *files) == 0
    assert "`test_kills.py::test_at_random` | 30 passed |" in page.read_text()


def test_what_failed_is_told(page, tmp_path, capsys):
    cases = [*KILLS, *OTHERS, ("test_kills", "test_at_random[7]", FAILED)]
    assert main(page, "abc1234", write_xml(tmp_path / "tests.xml", cases)) == 1
    assert "`test_kills.py::test_at_random` | 2 passed, 1 failed |" in page.read_text()
    assert "a kill" in capsys.readouterr().out


def test_what_was_not_run_keeps_its_figure_and_is_told(page, tmp_path, capsys):
    assert main(page, "abc1234", write_xml(tmp_path / "tests.xml", KILLS)) == 1
    assert "`test_kills.py::test_last_words` | 7 passed |" in page.read_text()
    assert "damage" in capsys.readouterr().out


def test_a_later_file_overrules_an_earlier_one(tmp_path):
    files = [write_xml(tmp_path / f"{name}.xml", [("test_kills", "test_it", within)])
             for name, within in (("a", FAILED), ("b", PASSED))]  # fmt: skip
    assert outcomes(files)["test_kills", "test_it"] == {"passed": 1}
