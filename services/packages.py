"""What a command says where a package that it needs isn't installed: one line instead of a traceback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_OURS = ("lm", "plaudit", "services", "trainer")


@contextmanager
def brought_by(group: str) -> Iterator[None]:
    """Ends the process where something is imported that the dependency group would have brought."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (told := absence(error, group)) is None:
            raise
        print(told, file=sys.stderr)
        sys.exit(os.EX_SOFTWARE)


def absence(error: BaseException, group: str) -> str | None:
    """Which package isn't there, and what brings it; None for other errors, and for a module of ours."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    if name is None or name.partition(".")[0] in _OURS:
        return None
    return f"{error}; in a checkout, `pip install -e . --group {group}` brings it (pip 25.1 or newer)"
