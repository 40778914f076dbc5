"""Items of a call that no message can hold: they have failures from here, their neighbours are scored.

An empty item is sent in the place of each, so that the others keep their numbers.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from plaudit.clients.errors import Details, InvalidArgument, ItemFailure, Violation, reason_of

ResultT = TypeVar("ResultT")
_INDEX = re.compile(r"items\[(\d+)\]")


class Unsendable:
    """The failures of a call's items, by the items' numbers."""

    def __init__(self) -> None:
        self._failures: dict[int, ItemFailure] = {}

    def add(self, index: int, failure: ItemFailure) -> None:
        """Item `index` can't be sent, or had failed before."""
        self._failures[index] = failure

    def put_into(self, results: tuple[ResultT, ...]) -> tuple[ResultT | ItemFailure, ...]:
        """`results` with the failures in their places."""
        return tuple(self._failures.get(index, result) for index, result in enumerate(results))

    @contextmanager
    def named(self) -> Iterator[None]:
        """Raises the service's InvalidArgument about items with these failures in the place of what it saw.

        They are all named; of what it finds itself, the service names the first.
        """
        try:
            yield
        except InvalidArgument as error:
            seen = [(int(place[1]), each) for each in error.violations if (place := _INDEX.match(each.field))]
            if not self._failures or not seen:
                raise
            found = [(index, each) for index, each in seen if index not in self._failures]
            for index, failure in self._failures.items():
                own = failure.violations or (Violation(f"items[{index}]", failure.message),)
                found.extend((index, each) for each in own)
            violations = tuple(each for _, each in sorted(found, key=lambda one: one[0]))
            reason = reason_of(violations, error.reason)
            details = Details(violations=violations, request_id=error.request_id)
            raise InvalidArgument(reason, error.where, details) from error.__cause__
