"""TLS of clients: whom they trust, and the certificate by which they show who they are."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import grpc

from plaudit.clients.errors import InvalidArgument

ChannelT = TypeVar("ChannelT")
File: TypeAlias = str | os.PathLike[str]

CHECK_S = 10.0
"""How often the files are looked at while calls are made."""
RENEW_S = 5.0
"""How often a channel is opened anew at most, because there is no address to its name."""
MOST_READS = 5
"""Times in a row that files may change while they are read."""

Line: TypeAlias = tuple[str, list[tuple[str, Any]]]
"""Target and options of a channel."""
Contents: TypeAlias = tuple[bytes, bytes | None, bytes | None]
"""CA, certificate and key."""


@dataclass(frozen=True)
class TlsFiles:
    """PEM files."""

    ca: Path
    """The CAs of which the server must have a certificate."""
    cert: Path | None
    key: Path | None

    def read(self) -> Contents:
        """What is in the files. Raises InvalidArgument."""
        return _read("tls_ca", self.ca), _read_if("tls_cert", self.cert), _read_if("tls_key", self.key)

    def read_whole(self) -> Contents:
        """As `read`, but checked. Raises InvalidArgument if they can't be used."""
        for _ in range(MOST_READS):
            found = self.read()
            self._check()
            if found == self.read():  # else it may be the certificate of before and the key of after
                return found
        raise InvalidArgument.at("tls_ca", f"{self.ca}, or what goes with it, changes while it is read")

    def _check(self) -> None:
        """gRPC itself would say only that no connection can be made."""
        import ssl  # takes 10 ms that most clients can do without

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(self.ca)
        except (OSError, ValueError) as error:
            raise InvalidArgument.at("tls_ca", f"{self.ca} should be certificates in PEM: {error}") from None
        if self.cert is None or self.key is None:
            return
        try:
            context.load_cert_chain(self.cert, self.key, password="")  # not asked for at a terminal
        except (OSError, ValueError) as error:
            text = f"{self.cert} and {self.key} should be a certificate and its key in PEM: {error}"
            raise InvalidArgument.at("tls_cert", text) from None


def tls_files(ca: File | None, cert: File | None, key: File | None) -> TlsFiles | None:
    """The files given, else those of the environment; None for plaintext. Raises InvalidArgument.

    A directory holds files called as in a TLS Secret of Kubernetes; as the certificate it brings key and CA,
    unless others are given. A file of the environment that is a certificate is ignored without a CA: it may
    be that of a server in this process.
    """
    asked = ca is not None or cert is not None or key is not None
    ca, cert, key = (
        given if given is not None else os.environ.get(f"PLAUDIT_TLS_{name}") or None
        for name, given in (("CA", ca), ("CERT", cert), ("KEY", key))
    )
    if cert and Path(cert).is_dir():
        ca, key = ca or cert, key or cert
    if ca is None:
        if asked:
            raise InvalidArgument.at("tls_ca", "is missing; say whom to trust (PLAUDIT_TLS_CA)")
        return None
    if (cert is None) is not (key is None):
        missing = "tls_key" if key is None else "tls_cert"
        raise InvalidArgument.at(missing, "is missing; tls_cert and tls_key go together")
    return TlsFiles(
        _pem(ca, "ca.crt"), _pem(cert, "tls.crt") if cert else None, _pem(key, "tls.key") if key else None
    )


class Channels(Generic[ChannelT]):
    """Channels that are opened by the first call, and anew when the files have changed.

    Those from before stay open until the files change again, for the calls on them. Files that can't be
    used leave things as they are. Safe to use from many threads.

    gRPC asks ever more seldom for a name that isn't there, up to once in two minutes, and can't be told
    otherwise; a new channel asks at once.
    """

    def __init__(
        self,
        files: TlsFiles | None,
        lines: Sequence[Line],
        open_one: Callable[[Line, grpc.ChannelCredentials | None], ChannelT],
        close: Callable[[ChannelT], object],
    ) -> None:
        self._files = files
        self._lines = lines
        self._open_one = open_one
        self._close = close
        self._lock = threading.Lock()
        self._seen: object = None
        self._checked = self._renewed = 0.0
        self._credentials: grpc.ChannelCredentials | None = None
        self._now: list[ChannelT] = []
        self._before: list[ChannelT] = []

    def now(self) -> list[ChannelT]:
        """Those for calls that begin now. Raises InvalidArgument for files that can't be used at first."""
        if self._now and (self._files is None or time.monotonic() < self._checked + CHECK_S):
            return self._now
        with self._lock:
            self._refresh()
        return self._now

    def every(self) -> list[ChannelT]:
        """Those that are open."""
        return [*self._before, *self._now]

    def renew(self, unresolved: ChannelT) -> None:
        """Puts a new channel in the place of one to whose name there was no address, and so no connection."""
        with self._lock:
            if unresolved in self._now and time.monotonic() >= self._renewed + RENEW_S:
                place = self._now.index(unresolved)
                opened = self._open_one(self._lines[place], self._credentials)
                self._now = [*self._now[:place], opened, *self._now[place + 1 :]]
                self._renewed = time.monotonic()

    def _open_all(self, credentials: grpc.ChannelCredentials | None) -> list[ChannelT]:
        return [self._open_one(line, credentials) for line in self._lines]

    def _refresh(self) -> None:
        self._checked = time.monotonic()
        if self._files is None:
            self._now = self._now or self._open_all(None)
            return
        try:
            if self._files.read() != self._seen:
                ca, cert, key = found = self._files.read_whole()
                credentials = grpc.ssl_channel_credentials(ca, key, cert)
                opened = self._open_all(credentials)
                for channel in self._before:
                    self._close(channel)
                self._before, self._now, self._seen = self._now, opened, found
                self._credentials = credentials
        except InvalidArgument:
            if not self._now:
                raise


def _pem(path: File, name: str) -> Path:
    return Path(path, name) if Path(path).is_dir() else Path(path)


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgument.at(name, f"{path} can't be read: {error.strerror}") from None


def _read_if(name: str, path: Path | None) -> bytes | None:
    return None if path is None else _read(name, path)
