"""`plaudit score` between pipes."""

import json
import subprocess
import sys
from contextlib import ExitStack

import pytest
from row_files import GOOD, bad_and_good, lines, right, write_form

PLAUDIT = [sys.executable, "-c", "import sys; from plaudit.cli import main; sys.exit(main())"]


@pytest.fixture
def typed(monkeypatch, tmp_path_factory):
    """typed(rows): what stands on stdin."""
    path = tmp_path_factory.mktemp("stdin") / "rows"
    with ExitStack() as stack:

        def put(rows):
            path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
            monkeypatch.setattr(sys, "stdin", stack.enter_context(path.open()))

        yield put


def test_stdin_to_stdout(score, toy, typed):
    typed(GOOD)
    code, out, err = score("-")
    assert (code, err) == (0, "plaudit: scored 60 rows\n")
    assert [json.loads(line) for line in out.splitlines()] == [right(toy, row) for row in GOOD]


def test_bad_rows_of_a_pipe_are_on_stderr(score, typed):
    typed(bad_and_good())
    code, out, err = score("-")
    assert (code, len(out.splitlines())) == (65, 57)
    *bad, last = err.splitlines()
    assert sorted(json.loads(line)["line"] for line in bad) == [11, 31, 46]
    assert last.startswith("plaudit: scored 57 rows; 3 without a score, such as line ")


def test_bad_rows_of_a_pipe_may_have_a_file(score, typed, files):
    typed(bad_and_good())
    code, out, err = score("-", "--bad-rows", "bad.jsonl")
    assert (code, len(out.splitlines()), err.count("\n")) == (65, 57, 1)
    assert sorted(row["line"] for row in lines(files / "bad.jsonl")) == [11, 31, 46]


def test_stdin_to_a_file(score, typed, files, toy):
    typed(bad_and_good())
    assert score("-", "-o", "out.jsonl")[0] == 65
    assert len(lines(files / "out.jsonl")) == 57
    assert len(lines(files / "out.jsonl.bad.jsonl")) == 3
    typed(GOOD)
    assert score("-", "-o", "out.jsonl")[0] == 64, "it is there already"
    typed(GOOD)
    assert score("-", "-o", "out.jsonl", "--restart")[0] == 0
    assert {path.name for path in files.iterdir()} == {"out.jsonl"}


@pytest.mark.parametrize("format_", ["jsonl", "csv"])
def test_a_file_to_stdout(score, files, format_):
    path = write_form(files, format_)
    assert score(path, "-o", f"out.{format_}")[0] == 65
    code, out, _ = score(path)
    assert (code, out) == (65, (files / f"out.{format_}").read_text())


def test_between_processes(toy):
    text = "".join(json.dumps(row) + "\n" for row in GOOD)
    done = subprocess.run(
        [*PLAUDIT, "score", "-", "--address", toy.address], input=text, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "plaudit: scored 60 rows\n")
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [*range(60)]


def test_rows_come_while_the_pipe_has_no_further_one(toy):
    """As `tail -f file | plaudit score - | …` has it."""
    with subprocess.Popen(
        [*PLAUDIT, "score", "-", "--address", toy.address],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        for numbers in ((0,), (1, 2, 3)):
            process.stdin.write("".join(json.dumps(GOOD[number]) + "\n" for number in numbers))
            process.stdin.flush()
            assert [json.loads(process.stdout.readline())["id"] for _ in numbers] == [*numbers]
        half = json.dumps(GOOD[4])
        process.stdin.write(half[:9])
        process.stdin.flush()
        process.stdin.write(half[9:])
        out, err = process.communicate(timeout=60)
    assert (json.loads(out)["id"], err) == (4, "plaudit: scored 5 rows\n")


def test_a_reader_that_goes_away_ends_it_quietly(toy, files):
    path = files / "in.jsonl"
    path.write_text("".join(json.dumps(GOOD[0]) + "\n" for _ in range(5000)))
    with subprocess.Popen(
        [*PLAUDIT, "score", path, "--address", toy.address], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout.readline()
            process.stdout.close()
            _, errors = process.communicate(timeout=60)
            assert errors == b""
        finally:
            process.kill()
