"""Standard output and error that may be lost: a full disk or a reader that has gone ends no run."""

import logging
from typing import Any, TextIO, cast

logger = logging.getLogger(__name__)


def lossy(stream: TextIO | None) -> TextIO:
    """`stream`, whose writing never fails from now on."""
    return cast(
        "TextIO", stream if stream is None or isinstance(stream, LossyStream) else LossyStream(stream)
    )


class LossyStream:
    """A text stream. What it can't take is lost; the log tells of the first time.

    It stays in place until the process has ended, or Python would make 120 of the exit code for what is left.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._told = False

    def write(self, text: str) -> int:
        """As of the stream."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._tell(error)
            return len(text)

    def flush(self) -> None:
        """As of the stream."""
        try:
            self._stream.flush()
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            logger.warning("%s can't be written: %s; the run goes on", self._stream.name, error.strerror)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  (whatever else a stream has)
        return getattr(self._stream, name)
