"""The file form of `plaudit score`."""

import sys
from contextlib import ExitStack
from pathlib import Path

import typer

from plaudit.cli.exits import EXIT_SOME_BAD
from plaudit.cli.options import PIPE
from plaudit.cli.progress import RowProgress
from plaudit.clients import PlauditError
from plaudit.files import Format
from plaudit.files.asking import Asking
from plaudit.files.bad_rows import BadRows
from plaudit.files.formats import Source, format_of, open_source
from plaudit.files.jsonl import JsonLines
from plaudit.files.lines import lines_as_they_come
from plaudit.files.outputs import bad_rows_at, beside, check_outputs, refuse_to_replace, replacing
from plaudit.files.rows import FileError
from plaudit.files.scoring import Advance, Job, Outcome, score_pipe


def score_file(
    path: Path,
    out: Path,
    bad: Path | None,
    format_: Format | None,
    asking: Asking,
    restart: bool,
    progress: bool | None,
) -> None:
    """Scores the file at `path`; PIPE is stdin or stdout. Raises typer.Exit if there are bad rows.

    Also raises FileError, PlauditError, OSError.
    """
    source = _source(path, out, format_, asking)
    if bad is None and out != PIPE:
        bad = beside(out, ".bad.jsonl")
    shown = sys.stderr.isatty() and (out != PIPE or not sys.stdout.isatty()) if progress is None else progress
    with RowProgress(source.size, shown) as bar:
        if bad is None or PIPE in (path, out):
            outcome = _score_pipe(source, out, bad, asking, restart, bar.advance)
        else:
            outcome = _score_regular(Job(path, source, out, bad, asking, bar.advance), restart)
    _report(outcome, bad)


def _source(path: Path, out: Path, format_: Format | None, asking: Asking) -> Source:
    if path == PIPE:
        if format_ not in (None, "jsonl"):
            raise FileError(f"stdin is read as JSON lines; write {format_} to a file first")
        return JsonLines(lines_as_they_come(sys.stdin.buffer))
    if not path.exists():
        raise FileError(f"{path}: no such file (of one response both are needed: PROMPT RESPONSE)")
    found = format_of(path, format_)
    if out == PIPE and found == "parquet":
        raise FileError("Parquet isn't written to a pipe; name a file with -o")
    if out != PIPE and format_of(out, format_, found) != found:
        raise FileError(f"{out}: the output has the format of the input, {found}; name it so")
    return open_source(path, found, asking.ids, asking.added)


def _score_regular(job: Job, restart: bool) -> Outcome:
    try:
        return job.run(restart)
    except (PlauditError, OSError, KeyboardInterrupt):
        if job.journal.exists():
            print(
                "plaudit: what is scored so far is kept; the same command goes on from there", file=sys.stderr
            )
        raise


def _score_pipe(
    source: Source, out: Path, bad: Path | None, asking: Asking, restart: bool, advance: Advance
) -> Outcome:
    with ExitStack() as stack:
        file, rows = sys.stdout.buffer, BadRows(sys.stderr.buffer)
        if bad is not None:
            check_outputs(*[each for each in (out, bad) if each != PIPE])
            if not restart:
                refuse_to_replace(out, bad)
        if out != PIPE:
            file = stack.enter_context(replacing(out))
        if bad is not None:
            rows = stack.enter_context(bad_rows_at(bad))
        return score_pipe(source, file, rows, asking, advance)


def _report(outcome: Outcome, bad: Path | None) -> None:
    words = f"plaudit: scored {outcome.scored:,} rows"
    if outcome.bad:
        where = f" in {bad}" if bad else ""
        words += f"; {outcome.bad:,} without a score{where}, such as {outcome.first_bad}"
    print(words, file=sys.stderr)
    if outcome.bad:
        raise typer.Exit(EXIT_SOME_BAD)
