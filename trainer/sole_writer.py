"""One process at a time writes to a run's folder; who comes second is told who was first.

The lock is the kernel's, and ends with the process that holds it, kill -9 included: none is ever left behind.
From host to host it holds as far as their volume carries it, as NFS does unless mounted with local locks.
"""

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from trainer.config import RunOptions, RunSection
from trainer.disk import Disk
from trainer.errors import RunHeld

FILE_NAME = ".lock"
"""In the run's folder: who holds it, or was the last to. Never removed: another may be about to lock it."""
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What a volume says that knows no locks."""

logger = logging.getLogger(__name__)


@contextmanager
def sole_writer(section: RunSection, options: RunOptions) -> Iterator[None]:
    """Holds the run's folder for the length of the block; of a dry run nothing, since it writes nothing.

    Raises RunHeld if another process has it, DiskUnusable.
    """
    if options.dry_run:
        yield
        return
    path = section.folder / FILE_NAME
    disk = Disk(section.disk_patience, section.checkpoints)
    with disk.write(path, 0, lambda: _take(path)):
        yield


def _take(path: Path) -> TextIO:
    """The locked file; the lock ends when it is closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    try:
        _lock(file, path.parent)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    except BaseException:
        file.close()
        raise
    return file


def _lock(file: TextIO, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read() or "a process that has just begun"
        advice = "wait for its end or stop it, or give this run another name (run.name)"
        raise RunHeld(f"{folder} is written to by {holder}; {advice}") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning(
            "the volume of %s knows no locks (%s): nothing keeps a second trainer away",
            folder,
            error.strerror,
        )
