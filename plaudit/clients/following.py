"""Streams that tell of changes: opened anew when they end, within a caller's patience."""

import time

from plaudit.clients.data import ModelVersion
from plaudit.clients.errors import DeadlineExceeded, Overloaded, PlauditError, Unavailable

WATCH_SECONDS = 300.0
"""A stream of events is opened anew after so long: it has a deadline like every call."""
PAUSE_SECONDS = 1.0


class Patience:
    """How long a service may stay away before a follower gives up."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since = time.monotonic()
        self._was_there = False

    def answered(self) -> None:
        """The service is there."""
        self._was_there = True

    def bear(self, failure: PlauditError) -> None:
        """Raises `failure` unless the stream may be opened again.

        A stream that has brought something doesn't count as time away, however long its messages were
        under way: the follower may have been slow, so that the service cut it off.
        """
        if self._was_there or isinstance(failure, DeadlineExceeded):  # the stream's own end
            self._was_there, self._since = False, time.monotonic()
        patient = time.monotonic() - self._since <= self._seconds
        if not patient or not isinstance(failure, DeadlineExceeded | Overloaded | Unavailable):
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
