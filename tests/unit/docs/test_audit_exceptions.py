"""Exceptions from `make audit` are written as SECURITY.md says: which, of what, why, and until when."""

import re
from datetime import date
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "audit-exceptions.txt").read_text(encoding="utf-8")
LINE = re.compile(
    r"(?P<id>[A-Z]+-[\w-]+)  # (?P<package>[\w.-]+): (?P<why>.{10,}); until (?P<until>\d{4}-\d\d-\d\d)"
)


def lines(text):
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def check(line):
    found = LINE.fullmatch(line)
    assert found, line
    date.fromisoformat(found["until"])
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert any(pin.startswith(f"{found['package']}==") for pin in pins), f"{line}: it isn't installed"


def test_each_says_which_of_what_why_and_until_when():
    for line in lines(TEXT):
        check(line)


def test_the_files_own_example_is_one():
    (example,) = [line.removeprefix("#   ") for line in TEXT.splitlines() if line.startswith("#   ")]
    check(example.replace("somepackage", "numpy"))


@pytest.mark.parametrize(
    "line", ["GHSA-1", "GHSA-1  # numpy", "GHSA-1  # numpy: not called here; until soon"]
)
def test_one_without_a_reason_or_an_end_is_none(line):
    with pytest.raises(AssertionError):
        check(line)
