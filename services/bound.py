"""`functools.partial` for where thousands are kept: a third of its memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

First = TypeVar("First")
Second = TypeVar("Second")
Last = TypeVar("Last")
Result = TypeVar("Result")


@dataclass(eq=False, slots=True)
class Bound(Generic[First, Second, Last, Result]):
    """A function that has its first two arguments and wants one more."""

    function: Callable[[First, Second, Last], Result]
    first: First
    second: Second

    def __call__(self, last: Last) -> Result:
        """What the function makes of all three."""
        return self.function(self.first, self.second, last)
