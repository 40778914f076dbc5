"""The public keys of whoever issues JWTs: a JSON Web Key Set (RFC 7517), from a file or by https.

Keys that are fetched are asked for again every few minutes, and when a token names one that isn't known,
so that its issuer can change them at any time. Those that can't be had again serve for an hour, and then
nothing passes.
"""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Protocol
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from jwt import PyJWK, PyJWTError

from services.rpc.options import OptionError, is_loopback_url, is_url
from services.rpc.reloading import Reloading

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""What a token may be signed by: never `none`, and nothing for which a public key could serve as a secret."""
REFRESH_S = 300.0
"""How often keys are fetched while all is well."""
LEAST_S = 10.0
"""Between two fetches, whatever callers send."""
TIMEOUT_S = 5.0
"""How long a fetch may take, and so the longest that a caller waits for one."""
MOST_AGE_S = 3600.0
"""How long keys serve that can't be fetched again."""
MOST_BYTES = 1 << 20

log = logging.getLogger("services.rpc.jwks")


@dataclass(frozen=True)
class Key:
    """A public key, and the one algorithm that it is for. Equal to another of the same content."""

    content: str
    jwk: PyJWK = field(compare=False, repr=False)


KeySet = Mapping[str | None, Key]
"""By `kid`; by None, too, where there is only one."""


class Keys(Protocol):
    """An issuer's keys as they are known now."""

    @property
    def are_current(self) -> bool:
        """Whether a key that isn't among them is none of the issuer's."""
        ...

    def of(self, kid: str | None) -> Key | None:
        """The key of that name. Safe from any thread."""
        ...

    async def refresh(self) -> None:
        """Looks for new ones, if that wasn't done just now."""
        ...

    async def watch(self) -> None:
        """Keeps them up to date until cancelled."""
        ...


def open_keys(source: str, on_read: Callable[[bool], None]) -> Keys:
    """Keys of a file or URL; `on_read` hears of changes whether they could be used. Raises OptionError."""
    return FetchedKeys(source, on_read) if is_url(source) else KeyFile(Path(source), on_read)


class KeyFile:
    """Keys of a file, which is looked at every second."""

    def __init__(self, path: Path, on_read: Callable[[bool], None]) -> None:
        """Raises OptionError for a file that can't be used."""
        source = f"--oidc-jwks {path}"
        self._file: Reloading[KeySet] = Reloading(source, [path], lambda found: parse_keys(found[0], source))
        self._file.on_read = on_read

    are_current = True

    def of(self, kid: str | None) -> Key | None:
        """The key of that name."""
        return self._file.value.get(kid)

    async def refresh(self) -> None:
        """Nothing: the next look is within a second."""

    async def watch(self) -> None:
        """Looks at the file every second until cancelled."""
        await self._file.watch()


class FetchedKeys:
    """Keys of a URL. All but `of` belongs to one event loop."""

    def __init__(self, url: str, on_read: Callable[[bool], None]) -> None:
        self._url = url
        self._on_read = on_read
        self._keys: KeySet = {}
        self._fetched_at = self._asked_at = float("-inf")
        self._is_good: bool | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._download: Future[KeySet] | None = None

    @property
    def are_current(self) -> bool:
        """Whether the last fetch went well."""
        return bool(self._is_good)

    def of(self, kid: str | None) -> Key | None:
        """The key of that name, unless it is too old to be believed in."""
        return self._keys.get(kid) if time.monotonic() < self._fetched_at + MOST_AGE_S else None

    async def refresh(self) -> None:
        """Fetches them, at most every LEAST_S; whoever comes meanwhile waits for the same fetch."""
        if self._fetching is None or self._fetching.done():
            if time.monotonic() < self._asked_at + LEAST_S:
                return
            self._asked_at = time.monotonic()
            self._fetching = asyncio.create_task(self._fetch())
        await asyncio.shield(self._fetching)

    async def watch(self) -> None:
        """Fetches them now and then until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_S if self._is_good else LEAST_S)

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                self._keys = await asyncio.wrap_future(self._downloading())
        except Exception as error:  # whatever comes from there, the next fetch is made
            if self._is_good is not False:
                reason = str(error) or f"no answer within {TIMEOUT_S:g} s"
                log.error("--oidc-jwks %s: the last good keys serve for an hour: %s", self._url, reason)
            self._is_good = False
        else:
            self._fetched_at = time.monotonic()
            if not self._is_good:
                log.info("--oidc-jwks %s: %d keys", self._url, len(self._keys))
            self._is_good = True
        self._on_read(self._is_good)

    def _downloading(self) -> Future[KeySet]:
        """In a thread of its own, one at a time: an issuer that sends byte by byte can hold it for days."""
        if self._download is None or self._download.done():
            self._download = Future()
            self._download.set_running_or_notify_cancel()  # whoever waits for it in vain doesn't end it
            threading.Thread(
                target=_finish, args=(self._download, self._url), name="plaudit-jwks", daemon=True
            ).start()
        return self._download


def parse_keys(content: bytes, source: str) -> KeySet:
    """The keys of a set that tokens can be checked by. Raises OptionError that begins with `source`."""
    try:
        loaded = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{source} isn't JSON: {error}") from None
    every = loaded.get("keys") if isinstance(loaded, dict) else None
    usable = [jwk for each in (every if isinstance(every, list) else []) if (jwk := _usable(each))]
    if not usable:
        raise OptionError(f"{source} has no public key to check tokens by; it should be a JSON Web Key Set")
    found: dict[str | None, Key] = {}
    for jwk in usable:
        found.setdefault(jwk.key_id, Key(json.dumps(jwk._jwk_data, sort_keys=True), jwk))
    if len(usable) == 1:
        found[None] = next(iter(found.values()))
    return found


def _usable(data: object) -> PyJWK | None:
    """The key, if it is public, long enough, and for signatures of a kind that we take."""
    if not isinstance(data, dict) or "d" in data or data.get("alg") not in (None, *ALGORITHMS):
        return None
    if data.get("use") not in (None, "sig") or not isinstance(data.get("kid"), str | None):
        return None
    try:
        jwk = PyJWK(data)
    except (PyJWTError, ValueError):
        return None
    is_strong = jwk.algorithm_name in ALGORITHMS and jwk.Algorithm.check_key_length(jwk.key) is None
    return jwk if is_strong else None


class _NoRedirects(HTTPRedirectHandler):
    """The URL is what its operator has checked; another one could be plaintext."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def _finish(download: Future[KeySet], url: str) -> None:
    try:
        download.set_result(_download(url))
    except BaseException as error:
        download.set_exception(error)


def _download(url: str) -> KeySet:
    handlers = [_NoRedirects(), *([ProxyHandler({})] if is_loopback_url(url) else [])]
    request = Request(url, headers={"accept": "application/json"})
    with build_opener(*handlers).open(request, timeout=TIMEOUT_S) as response:
        content = response.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OptionError(f"more than {MOST_BYTES:,} bytes")
    return parse_keys(content, "what is there")
