"""`python -m benchmarks.scorer` from end to end, and what it refuses."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import typer

from benchmarks import scorer, table
from benchmarks.results import Settings
from benchmarks.workload import read_sentences

pytestmark = [
    pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="comes with the group bench"),
    pytest.mark.timeout(300),  # imports, and two servers that start
]


def bench(*arguments):
    command = [sys.executable, "-m", "benchmarks.scorer", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture
def environment(monkeypatch):
    """What a measurement sets for the processes that it starts is taken back."""
    for name in (*scorer.THREAD_VARIABLES, "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(sys, "argv", ["scorer", "--tiny"])


@pytest.mark.slow
def test_a_tiny_run_prints_both_tables_and_puts_them_into_the_page(
    tiny_reward, sentences_folder, tmp_path, environment, capsys
):
    page = tmp_path / "page.md"
    page.write_text(f"# Speed\n{table.BEGIN}\nNot measured yet.\n{table.END}\nMore.\n", encoding="utf-8")
    with pytest.raises(typer.Exit) as ended:
        scorer.main(model=str(tiny_reward), data=sentences_folder, threads=1, tiny=True, write=page)
    said = capsys.readouterr()
    assert ended.value.exit_code == 0, said.err
    written = page.read_text(encoding="utf-8")
    assert written.startswith(f"# Speed\n{table.BEGIN}\n- ")
    assert written.endswith(f"\n{table.END}\nMore.\n")
    tables = written.split(table.BEGIN)[1].split(table.END)[0].strip()
    assert tables in said.out
    names = ("sorted batches", "padded batches of 16", "score_many", "calls of 64", "transformers pipeline",
             "CrossEncoder", "--batch_size 16", "a call a text")  # fmt: skip
    for name in names:
        assert name in tables
    assert "python -m benchmarks.scorer --tiny" in tables
    assert "24 texts of " in tables
    assert "round 2 of 2: " in said.err


def test_without_texts_it_ends_before_a_model_is_loaded(tiny_reward, tmp_path):
    done = bench("--model", tiny_reward, "--data", tmp_path)
    assert done.returncode == 64
    assert "judge_train.jsonl; `make run` prepares it" in done.stderr


def test_without_a_model_it_says_so(sentences_folder, tmp_path, capsys):
    settings = Settings(str(tmp_path / "nothing"), "float32", 1, 4, 1, 1, 16, 0)
    assert scorer._run(settings, read_sentences(sentences_folder), None) == 64
    assert capsys.readouterr().err.endswith("nothing: no such folder\n")


def test_a_page_without_markers_is_noticed_before_minutes_are_spent(tiny_reward, sentences_folder, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Speed\n", encoding="utf-8")
    done = bench("--model", tiny_reward, "--data", sentences_folder, "--write", page)
    assert done.returncode == 64
    assert table.BEGIN in done.stderr
    assert page.read_text(encoding="utf-8") == "# Speed\n"
