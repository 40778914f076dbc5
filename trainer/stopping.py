"""SIGTERM as a wish: the step under way is finished, a checkpoint written, and the process exits with 75."""

import signal
from types import FrameType, TracebackType
from typing import Self


class StopSignal:
    """While entered, SIGTERM only sets `requested`. Ctrl-C stays KeyboardInterrupt. Main thread only."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._former = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGTERM, self._former)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
