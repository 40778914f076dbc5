"""What a check says."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from plaudit.conformance.subject import Subject

Verdict: TypeAlias = Literal["pass", "fail", "skip"]


class Broken(Exception):
    """The server doesn't do what it should; says what it does instead."""


class Skipped(Exception):
    """The server has no need to; says why."""


@dataclass(frozen=True)
class Check:
    """One promise of the contract, and how to see whether it is kept."""

    name: str
    expected: str
    look: Callable[["Subject"], None]
    """Raises Broken, Skipped, or what a call raises."""


@dataclass(frozen=True)
class Finding:
    """What came of one check."""

    check: str
    expected: str
    verdict: Verdict
    found: str
    """What was found instead, or why it was skipped; empty for a pass."""


def expect(right: bool, found: str) -> None:
    """Raises Broken with what was found instead."""
    if not right:
        raise Broken(found)
