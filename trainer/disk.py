"""The disk that a run writes to: where it is full or read-only, writing waits until it can be done.

Nothing is lost meanwhile: what is to be written stays in memory, and no further step is taken.
"""

import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from trainer import checkpoints
from trainer.errors import CheckpointError, DiskUnusable
from trainer.stopping import StopSignal

ResultT = TypeVar("ResultT")

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
CURES = {
    errno.ENOSPC: "remove what nobody needs there, such as folders of other runs, or make the volume larger",
    errno.EDQUOT: "remove what nobody needs there, such as folders of other runs, or have the quota raised",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "mount it for writing",
    errno.EACCES: "give the trainer's user the right to write there",
    errno.EIO: "look into the kernel's log",
    errno.ESTALE: "mount it again",
}
"""What a person can mend while the run waits, and how."""

logger = logging.getLogger(__name__)


@dataclass
class Disk:
    """Writes files of one run."""

    patience: float
    """Seconds that one write may wait."""
    checkpoints: Path
    """Where the run's checkpoints are: the message that gives up names the newest."""
    stop: StopSignal = field(default_factory=StopSignal)
    """Ends every wait: a disk is no reason to outlive SIGTERM."""
    waiting: bool = False
    """Whether a write waits now."""
    given_up: bool = False
    """Whether one has waited in vain; nothing more should be written then."""

    def write(self, path: Path, needed: int, act: Callable[[], ResultT]) -> ResultT:
        """What `act` returns, which writes about `needed` bytes to `path`, or nothing if it raises.

        Asked again while the disk refuses. Raises DiskUnusable after `patience`, and on a wish to stop;
        errors that are not the disk's come out at once.
        """
        end, pause = time.monotonic() + self.patience, FIRST_WAIT_S
        try:
            while True:
                try:
                    return act()
                except Exception as error:
                    reason = _refusal(error, path, needed)
                    if reason is None:
                        raise
                    self.waiting = True
                    self._pause(reason, pause, end - time.monotonic(), error)
                pause = min(2 * pause, LONGEST_WAIT_S)
        finally:
            self.waiting = False

    def _pause(self, reason: str, seconds: float, left: float, error: Exception) -> None:
        if left <= 0:
            raise self._give_up(reason, f"after waiting for {self.patience:.0f} s") from error
        logger.warning(
            "%s. The step in hand is kept in memory; waiting for another %.0f s (run.disk_patience)",
            reason, left,
        )  # fmt: skip
        if self.stop.wait(min(seconds, left)):
            raise self._give_up(reason, "stopped while waiting") from error

    def _give_up(self, reason: str, why: str) -> DiskUnusable:
        self.given_up = True
        return DiskUnusable(f"{reason}; {why}; {_newest(self.checkpoints)}; then go on with --resume")


def _newest(folder: Path) -> str:
    try:
        path = checkpoints.latest_whole(folder)
    except CheckpointError as error:
        return str(error)
    return f"the newest whole checkpoint is {path}" if path else "there is no checkpoint yet"


def _refusal(error: Exception, path: Path, needed: int) -> str | None:
    """What the disk has against a write, and what to do; None if it isn't the disk."""
    number = _errno(error)
    if number is None or number not in CURES:
        return None
    sizes = f"{_size(needed)} needed, {_free(path.absolute())}"
    return f"{path} can't be written: {os.strerror(number)}, {sizes}; {CURES[number]}"


def _free(path: Path) -> str:
    """Of the volume that `path` is on, or would be."""
    try:
        place = next(each for each in (path, *path.parents) if each.exists())
        mount = next(each for each in (place, *place.parents) if each.is_mount())
        return f"{_size(shutil.disk_usage(place).free)} free on {mount}"
    except OSError as error:
        return f"what is free isn't known ({error.strerror})"


def _errno(error: Exception) -> int | None:
    """Of an OSError, and of what shutil and libraries in Rust make of one."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"(?:os error |\[Errno )(\d+)", str(error))
    return int(found[1]) if found else None


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
