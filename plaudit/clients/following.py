"""Streams that tell of changes: opened anew when they end, within a caller's patience."""

import time

from plaudit.clients.data import ModelVersion
from plaudit.clients.errors import DeadlineExceeded, PlauditError, Unavailable

WATCH_SECONDS = 300.0
"""A stream of events is opened anew after so long: it has a deadline like every call."""
PAUSE_SECONDS = 1.0


class Patience:
    """How long a service may stay away before a follower gives up."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last_answer = time.monotonic()

    def answered(self) -> None:
        """The service is there."""
        self._last_answer = time.monotonic()

    def bear(self, failure: PlauditError) -> None:
        """Raises `failure` unless the stream may be opened again."""
        if isinstance(failure, DeadlineExceeded):
            self.answered()  # its own end: the service was there
        elif not isinstance(failure, Unavailable) or time.monotonic() - self._last_answer > self._seconds:
            raise failure


class Watching:
    """Where a watcher of a version stands, over streams that end."""

    def __init__(self, patience: float) -> None:
        self.patience = Patience(patience)
        self._last: ModelVersion | None = None

    def is_news(self, model: ModelVersion) -> bool:
        """Whether it isn't what the stream before has told already."""
        self.patience.answered()
        last, self._last = self._last, model
        return model != last
