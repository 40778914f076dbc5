"""Items of a call that no message can hold: they have failures from here, their neighbours are scored.

An empty item is sent in the place of each, so that the others keep their numbers.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from plaudit.clients.errors import Details, InvalidArgument, ItemFailure, Violation

ResultT = TypeVar("ResultT")
_INDEX = re.compile(r"items\[(\d+)\]")


class Unsendable:
    """The failures of a call's items, by the items' numbers."""

    def __init__(self) -> None:
        self._failures: dict[int, ItemFailure] = {}

    def add(self, index: int, error: InvalidArgument) -> None:
        """Item `index` can't be sent because of `error`."""
        self._failures[index] = ItemFailure("INVALID_ARGUMENT", error.reason, error.violations)

    def put_into(self, results: tuple[ResultT, ...]) -> tuple[ResultT | ItemFailure, ...]:
        """`results` with the failures in their places."""
        return tuple(self._failures.get(index, result) for index, result in enumerate(results))

    @contextmanager
    def named(self) -> Iterator[None]:
        """Raises an InvalidArgument of the service with what is wrong in the place of what it saw."""
        try:
            yield
        except InvalidArgument as error:
            violations = tuple(each for seen in error.violations for each in self._of(seen))
            if violations == error.violations:
                raise
            reason = "; ".join(f"{each.field}: {each.description}" for each in violations)
            details = Details(violations=violations, request_id=error.request_id)
            raise InvalidArgument(reason, error.where, details) from error.__cause__

    def _of(self, seen: Violation) -> tuple[Violation, ...]:
        place = _INDEX.match(seen.field)
        failure = self._failures.get(int(place[1])) if place else None
        return failure.violations if failure else (seen,)
