"""Files that are read again when they change, without a restart."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from services.rpc.options import OptionError

Value = TypeVar("Value")

RELOAD_S = 1.0
"""How often the files are looked at."""

log = logging.getLogger("services.rpc.reloading")


class Reloading(Generic[Value]):
    """What some files say now; while they say nothing that can be used, what they said before.

    The content is compared, not times or inodes: it tells every kind of change, also that of the symlink
    by which Kubernetes swaps a mounted Secret.
    """

    def __init__(self, what: str, paths: Sequence[Path], parse: Callable[[Sequence[bytes]], Value]) -> None:
        """`what` names the files in messages. Raises OptionError if they can't be used at the start."""
        self._what = what
        self._paths = tuple(paths)
        self._parse = parse
        self._seen: Sequence[bytes] | OSError = self._read()
        self.value = self._parsed(self._seen)
        self.on_read: Callable[[bool], None] = lambda is_good: None
        """Hears of every change whether it could be used."""

    def refresh(self) -> None:
        """Looks at the files. Blocks for a moment."""
        found = self._read()
        if found == self._seen or (isinstance(found, OSError) and isinstance(self._seen, OSError)):
            return
        self._seen = found
        try:
            self.value = self._parsed(found)
        except Exception as error:  # whatever is in a file, the next version of it is read
            log.error("%s: the last good version stays in use: %s", self._what, error)
            self.on_read(False)
        else:
            log.info("%s: read again", self._what)
            self.on_read(True)

    async def watch(self) -> None:
        """Looks at the files every second until cancelled."""
        while True:
            await asyncio.sleep(RELOAD_S)
            await asyncio.to_thread(self.refresh)

    def _read(self) -> Sequence[bytes] | OSError:
        try:
            return [path.read_bytes() for path in self._paths]
        except OSError as error:
            return error

    def _parsed(self, found: Sequence[bytes] | OSError) -> Value:
        if isinstance(found, OSError):
            raise OptionError(f"{self._what}: {found.filename} can't be read: {found.strerror}")
        return self._parse(found)
