"""Scores a file: results go into a journal, and the output appears whole, at the end.

A pipe can't be read again, so it is written as the results come, without a journal.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from plaudit.clients import ItemFailure, Reward, RewardInfo
from plaudit.files.asking import Asking
from plaudit.files.bad_rows import BadRows
from plaudit.files.columns import column_values
from plaudit.files.formats import Sink, Source
from plaudit.files.journal import Journal
from plaudit.files.outputs import bad_rows_at, beside, check_outputs, refuse_to_replace, replacing
from plaudit.files.rows import BadRow, FileError, Row

Advance: TypeAlias = Callable[[str, Row], None]
"""Told of each row that is done, and what is done with it: "scored" or "written"."""


@dataclass(frozen=True)
class Outcome:
    """What became of a file."""

    scored: int
    bad: int
    first_bad: str
    """Line of a bad row and the reason; empty if there is none."""


@dataclass(frozen=True)
class Job:
    """A file, and where it goes."""

    path: Path
    source: Source
    out: Path
    bad: Path
    asking: Asking
    advance: Advance

    @property
    def journal(self) -> Path:
        """Where results are kept until the output is whole."""
        return beside(self.out, ".journal")

    def run(self, restart: bool) -> Outcome:
        """Scores what isn't scored yet, then writes output and bad rows.

        Ended by anything, the next run goes on behind the last result; `restart` forgets them.
        Raises FileError, PlauditError, OSError.
        """
        check_outputs(self.path, self.out, self.bad)
        if not restart and not self.journal.exists():
            refuse_to_replace(self.out, self.bad)
        facts = self._facts()
        with Journal(self.journal, facts, restart) as journal:
            self._score(journal)
            self._check_unchanged(facts)
            outcome = self._write(journal)
            journal.remove()
        return outcome

    def _score(self, journal: Journal) -> None:
        rows = self.source.rows(journal.after)
        for row, result in self.asking.results(rows, _leave_for_later):
            journal.add(row.line, result)
            self.advance("scored", row)

    def _write(self, journal: Journal) -> Outcome:
        with replacing(self.out) as file, bad_rows_at(self.bad) as bad:
            writer = Writer(self.source, file, bad, self.asking.added)
            results = journal.results()
            for row in self.source.rows():
                try:
                    self.asking.item(row)
                except BadRow as error:
                    writer.refuse(row, str(error))
                    continue
                line, result = next(results, (0, None))
                if line != row.line or result is None:
                    raise FileError(f"{journal.path}: has no result for line {row.line}; --restart")
                writer.write(row, result)
                self.advance("written", row)
            return writer.finish()

    def _facts(self) -> dict[str, str]:
        """All that a result depends on, by what people call it."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        options = self.asking.options
        info = self.asking.client.get_model(options.get("model", ""))
        return {
            "the input's SHA-256": digest,
            **_model_facts(info),
            "--model": info.name,
            "--truncation": options.get("truncation", "error"),
            "--components": str(options.get("include_components", False)),
            "--tokenizer-sha256": self.asking.tokenizer_sha256,
        }

    def _check_unchanged(self, facts: dict[str, str]) -> None:
        """Whoever changes file or model meanwhile gets no half of one and half of the other."""
        for name, value in self._facts().items():
            if value != facts[name]:
                raise FileError(f"{self.path}: {name} changed while it was scored; begin anew with --restart")


def _model_facts(info: RewardInfo) -> dict[str, str]:
    return {
        "the model's digest": info.model.weights_sha256,
        "the tokenizer's digest": info.model.tokenizer_sha256,
        "the model's data type": info.dtype,
        "the model's mean": str(info.reward_mean),
        "the model's deviation": str(info.reward_std),
    }


def _leave_for_later(row: Row, reason: str) -> None:
    """Reading it again will show what is wrong with it."""


class Writer:
    """Writes rows to the output or to the bad ones, and counts them."""

    def __init__(self, source: Source, file: BinaryIO, bad: BadRows, added: tuple[str, ...]) -> None:
        self._source, self._bad, self._added = source, bad, added
        self._sink: Sink = source.sink(file, added)
        self._scored = 0

    def write(self, row: Row, result: Reward | ItemFailure) -> None:
        """One that was asked for."""
        if isinstance(result, ItemFailure):
            self.refuse(row, result.message)
        else:
            self._sink.write(row, column_values(result, self._added))
            self._scored += 1

    def refuse(self, row: Row, reason: str) -> None:
        """One that wasn't."""
        self._bad.add(row.line, reason, self._source.original(row))

    def finish(self) -> Outcome:
        """Ends the output, the file of which stays open."""
        self._sink.close()
        return Outcome(self._scored, self._bad.count, self._bad.first)


def score_pipe(source: Source, file: BinaryIO, bad: BadRows, asking: Asking, advance: Advance) -> Outcome:
    """Writes each row to `file` as it is scored, in order. Raises PlauditError, OSError."""
    writer = Writer(source, file, bad, asking.added)
    for row, result in asking.results(source.rows(), writer.refuse):
        writer.write(row, result)
        file.flush()
        advance("scored", row)
    return writer.finish()
