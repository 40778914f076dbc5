"""The bearer token of a client: one for its whole life, or what a file says now."""

import os
import re
import threading
import time
from contextlib import suppress
from pathlib import Path

from plaudit.clients.errors import InvalidArgument
from plaudit.clients.tls import CHECK_S, File


class Token:
    """What goes with the calls that begin now; "" for none. Safe to use from many threads."""

    def __init__(self, value: str = "", file: Path | None = None) -> None:
        """`value`, or the first line of `file`, which is read again when it changes.

        Raises InvalidArgument for a file that can't be used. One that can't any more leaves the token as it
        was.
        """
        self._file = file
        self._value = value if file is None else _read(file)
        self._lock = threading.Lock()
        self._checked = time.monotonic()

    def now(self) -> str:
        """The token. Looks at the file every ten seconds."""
        if self._file is not None and time.monotonic() >= self._checked + CHECK_S:
            with self._lock, suppress(InvalidArgument):
                self._checked = time.monotonic()
                self._value = _read(self._file)
        return self._value

    def differs_from(self, shown: str) -> bool:
        """Whether calls that begin now show another."""
        return self.now() != shown


def open_token(token: str | None, file: File | None) -> Token:
    """The token given, else that of the environment. Raises InvalidArgument."""
    if token is None and file is None:
        token, file = os.environ.get("PLAUDIT_TOKEN"), os.environ.get("PLAUDIT_TOKEN_FILE") or None
        if token and file is not None:
            raise InvalidArgument.at("token", "PLAUDIT_TOKEN and PLAUDIT_TOKEN_FILE are both set; unset one")
        token = None if file is not None else token
    if token is not None and file is not None:
        raise InvalidArgument.at("token", "and token_file are both given; give one")
    return Token((token or "").strip(), None if file is None else Path(file))


def _read(path: Path) -> str:
    try:
        lines = path.read_text("ascii").splitlines()
    except OSError as error:
        raise InvalidArgument.at("token_file", f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidArgument.at("token_file", f"{path} holds other characters than ASCII") from None
    token = lines[0].strip() if lines else ""
    if not re.fullmatch(r"[!-~]+", token):
        raise InvalidArgument.at("token_file", f"{path} should hold a token on its first line")
    return token
