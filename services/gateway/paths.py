"""Field paths of the gRPC contract as paths in the JSON body that a caller sent."""

import re
from collections.abc import Callable, Iterable
from typing import TypeAlias

from plaudit.clients import Violation

Replacement: TypeAlias = str | Callable[[re.Match[str]], str]


class Paths:
    """Renames by (pattern, replacement) rules, those of `re.sub`, one after the other."""

    def __init__(self, *rules: tuple[str, Replacement]) -> None:
        self._rules = rules

    def __call__(self, field: str) -> str:
        """The path in the body."""
        for pattern, replacement in self._rules:
            field = re.sub(pattern, replacement, field)
        return field

    def violations(self, violations: Iterable[Violation]) -> tuple[Violation, ...]:
        """The same, said of the body's fields."""
        return tuple(Violation(self(each.field), each.description) for each in violations)


OPTIONS = (r"^options\.", "")
