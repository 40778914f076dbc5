"""Stopping as a wish: the step under way is finished, a checkpoint written, and the process ends.

After SIGTERM, by which machines are cleared, with 75: start me again. After StopRun, which somebody
meant, with 0.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Self

from trainer.errors import Stopped, StoppedByCall

PARENT_POLL_S = 0.5


class StopSignal:
    """While entered, SIGTERM only sets `requested`. Ctrl-C stays KeyboardInterrupt.

    Only the main thread may enter it.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self.meant = False
        """Whether somebody asked by `ask`, so that the run isn't to go on by itself."""

    @property
    def requested(self) -> bool:
        """Whether the run is to stop."""
        return self._event.is_set()

    def ask(self) -> None:
        """Asks the run to stop for good, from any thread."""
        self.meant = True
        self._event.set()

    def request(self) -> None:
        """Asks the run to stop and to be started again, from any thread, as SIGTERM does."""
        self._event.set()

    def error(self, reason: str) -> Stopped:
        """What ends the run once it has stopped."""
        return StoppedByCall(reason) if self.meant else Stopped(reason)

    def wait(self, seconds: float) -> bool:
        """Sleeps, but not past a wish to stop, in any thread; whether there is one."""
        return self._event.wait(seconds)

    def __enter__(self) -> Self:
        self._former = signal.signal(signal.SIGTERM, lambda number, frame: self.request())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGTERM, self._former)


def end_early_on_sigterm() -> None:
    """Until a StopSignal listens, SIGTERM ends the process at once, with 75: nothing is lost yet.

    Also as process 1 of a container, which the kernel doesn't end without a handler. Main thread only.
    """
    signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: FrameType | None) -> None:
    print("stopped before the first step; start it again", file=sys.stderr, flush=True)
    os._exit(Stopped.exit_code)  # threads that wait for a service would hold a plain exit up


def end_with_parent(parent: int | None) -> None:
    """Sends this process SIGTERM once `parent`, a process id, is its parent no longer; None never does."""
    if parent is not None:
        threading.Thread(target=_watch, args=(parent,), name="parent-watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
