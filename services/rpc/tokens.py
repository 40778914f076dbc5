"""The tokens file: who may call, by which credential, what, until when, and how much.

[default]                            # quotas of every caller that has none of its own; all are optional
requests_per_second = 50
tokens_per_second = 200000
in_flight = 64

[[token]]                            # `plaudit token new` writes these lines
name = "alice"                       # several entries may share a name: that is how tokens are rotated
sha256 = "9f86d081…"                 # of the token, in hex: the file holds nothing that opens anything
scopes = ["score"]
expires = 2027-01-01                 # from then on (UTC) it opens nothing; never without it
requests_per_second = 5

[[token]]
name = "trainer"
certificate = "spiffe://cluster.local/ns/plaudit/sa/trainer"  # in place of a token: see tls.py
scopes = ["generate", "weights:push", "score", "logprobs"]

[[token]]
name = "gateway"
sha256 = "60303ae2…"
scopes = ["score"]
speaks_for_others = true             # whom it names in x-plaudit-caller has turns of its own on a busy model
"""

import difflib
import hmac
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

from plaudit.access import CALLER_NAME, SCOPES, token_digest
from services.rpc.options import OptionError
from services.rpc.reloading import Reloading

MOST = 1e12
"""Of any quota."""
MOST_ENTRIES = 1000
"""Each call is held against all of them: 0.1 ms."""


@dataclass(frozen=True)
class Quota:
    """How much one caller may have, all its connections together; None is no limit."""

    requests_per_second: float | None = None
    tokens_per_second: float | None = None
    in_flight: int | None = None


@dataclass(frozen=True)
class Identity:
    """Who calls, as its credential proves."""

    name: str
    """Empty for the holders of PLAUDIT_TOKEN, who all look alike."""
    scopes: frozenset[str]
    expires: datetime | None = None
    quota: Quota = Quota()
    speaks_for_others: bool = False
    """Whether it is believed for whom it calls. Who isn't can't get more than one caller's share by names."""

    @property
    def is_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires is not None and datetime.now(UTC) >= self.expires

    def name_of(self, told: str | None) -> str:
        """Who takes turns on a busy model, if it says that it calls for `told`."""
        return f"{self.name}/{told}" if told and self.speaks_for_others else self.name


class Refused(Exception):
    """A credential that opens nothing; in words that hold nothing of it."""

    def __init__(self, reason: str, words: str) -> None:
        """`reason` is one of metrics.REFUSALS."""
        super().__init__(words)
        self.reason = reason


identity: ContextVar[Identity | None] = ContextVar("identity", default=None)
"""Whose call is served; None where the server asks nobody who they are."""


@dataclass(frozen=True)
class Tokens:
    """Everybody who may call, by digest of the token and by name in the certificate."""

    by_digest: Mapping[str, Identity]
    by_certificate: Mapping[str, Identity]
    default: Quota = Quota()
    """Of callers who are in no entry: those with a JWT."""

    def of_token(self, token: str) -> Identity | None:
        """Whose token it is; takes the same time whether and whichever it is."""
        digest, found = token_digest(token), None
        for known, identity in self.by_digest.items():
            if hmac.compare_digest(known, digest):
                found = identity
        return found

    def of_certificate(self, names: Iterable[str]) -> Identity | None:
        """Whose certificate it is, by the names in it."""
        return next((self.by_certificate[name] for name in names if name in self.by_certificate), None)


def open_tokens(
    file: Path | None, shared_token: str | None, shared_file: Path | None = None
) -> "Reloading[Tokens]":
    """The tokens of `file`, and those that may do everything: one, and the lines of a file.

    Raises OptionError.
    """
    files = {"--tokens": file, "PLAUDIT_TOKEN_FILE": shared_file}
    given = {option: path for option, path in files.items() if path is not None}

    def parse(contents: Sequence[bytes]) -> Tokens:
        by = dict(zip(given, contents, strict=True))
        shared = [] if shared_token is None else [shared_token.strip()]
        if shared_file is not None:
            shared += _lines(by["PLAUDIT_TOKEN_FILE"], f"PLAUDIT_TOKEN_FILE {shared_file}")
        found = Tokens({}, {}) if file is None else parse_tokens(by["--tokens"], f"--tokens {file}")
        extra = {token_digest(token): Identity("", frozenset(SCOPES)) for token in shared}
        return replace(found, by_digest={**found.by_digest, **extra})

    what = " and ".join(f"{option} {path}" for option, path in given.items())
    return Reloading(what, list(given.values()), parse)


def _lines(content: bytes, source: str) -> list[str]:
    """The tokens of a file with one a line. Raises OptionError, which shows none of them."""
    lines = [line.strip() for line in content.decode("ascii", "replace").splitlines()]
    tokens = [line for line in lines if line]
    if not tokens or not all(re.fullmatch(r"[!-~]+", token) for token in tokens):
        raise OptionError(f"{source} should hold a token on each line, in ASCII without spaces")
    return tokens


def parse_tokens(content: bytes, source: str) -> Tokens:
    """What a tokens file says. Raises OptionError that begins with `source` and names the key."""
    try:
        tables = tomllib.loads(content.decode())
        repr(tables)  # numbers of thousands of digits can't be shown in a message
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{source} isn't TOML: {error}") from None
    try:
        return _tokens(tables)
    except OptionError as error:
        raise OptionError(f"{source}: {error}") from None


def _tokens(tables: Mapping[str, Any]) -> Tokens:
    _check_keys(tables, ("default", "token"), "")
    default = _table(tables.get("default", {}), "default")
    _check_keys(default, _QUOTAS, "default.")
    entries = tables.get("token")
    if not isinstance(entries, list) or len(entries) > MOST_ENTRIES:
        raise OptionError(f"should hold up to {MOST_ENTRIES} [[token]] tables, or `token = []` for nobody")
    by: dict[str, dict[str, Identity]] = {"sha256": {}, "certificate": {}}
    quotas: dict[str, Quota] = {}
    for index, each in enumerate(entries):
        path = f"token[{index}]"
        entry = _table(each, path)
        _check_keys(entry, _KEYS, f"{path}.")
        kind, credential = _credential(entry, path)
        if credential in by[kind]:
            raise OptionError(f"{path}.{kind} is another entry's already")
        found = by[kind][credential] = _identity(entry, default, path)
        if quotas.setdefault(found.name, found.quota) != found.quota:
            raise OptionError(f"{path}: every entry of {found.name!r} needs the same quotas: they share one")
    return Tokens(by["sha256"], by["certificate"], _quota(default, "default"))


def _identity(entry: Mapping[str, Any], default: Mapping[str, Any], path: str) -> Identity:
    name, scopes = entry.get("name"), entry.get("scopes")
    if not isinstance(name, str) or not re.fullmatch(CALLER_NAME, name, re.ASCII):
        raise OptionError(f"{path}.name is {name!r}; use 1 to 100 letters, digits, '_', '.', '@' or '-'")
    if not isinstance(scopes, list) or not scopes:
        raise OptionError(f"{path}.scopes is {scopes!r}; use a list of {', '.join(SCOPES)}")
    for scope in scopes:
        if not isinstance(scope, str) or scope not in SCOPES:
            raise OptionError(f"{path}.scopes: {scope!r} is no scope; {_instead(scope, SCOPES)}")
    quota = _quota({**default, **entry}, path)
    speaks = entry.get("speaks_for_others", False)
    if not isinstance(speaks, bool):
        raise OptionError(f"{path}.speaks_for_others is {speaks!r}; use true or false")
    return Identity(name, frozenset(scopes), _expiry(entry.get("expires"), path), quota, speaks)


def _credential(entry: Mapping[str, Any], path: str) -> tuple[str, str]:
    """("sha256" or "certificate", its value)."""
    kinds = [kind for kind in ("sha256", "certificate") if kind in entry]
    if len(kinds) != 1:
        raise OptionError(f"{path} should have either sha256, of a token, or certificate, a name in one")
    kind, value = kinds[0], entry[kinds[0]]
    if not isinstance(value, str) or not value:
        raise OptionError(f"{path}.{kind} is {value!r}; use a text")
    if kind == "sha256" and not re.fullmatch("[0-9a-f]{64}", value):
        raise OptionError(f"{path}.sha256 isn't 64 lower-case hex digits; `plaudit token new` makes them")
    return kind, value


def _expiry(value: object, path: str) -> datetime | None:
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, date):
        return datetime.combine(value, time(), UTC)
    if value is not None:
        raise OptionError(f"{path}.expires is {value!r}; use a date without quotes, such as 2027-01-01")
    return None


def _quota(values: Mapping[str, Any], path: str) -> Quota:
    for key in _QUOTAS:
        value = values.get(key, 1)
        kind, what = (int, "a whole number") if key == "in_flight" else (int | float, "a number")
        if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < MOST:
            raise OptionError(f"{path}.{key} is {value!r}; use {what} above 0; without one there is no limit")
    return Quota(**{key: values[key] for key in _QUOTAS if key in values})


def _table(value: object, path: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise OptionError(f"{path} should be a table")
    return value


def _check_keys(table: Mapping[str, Any], known: Sequence[str], prefix: str) -> None:
    for key in table:
        if key not in known:
            raise OptionError(f"{prefix}{key} is unknown; {_instead(key, known)}")


def _instead(word: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(word), known, 1)
    return f"did you mean {near[0]}?" if near else f"use {', '.join(known)}"


_QUOTAS = tuple(each.name for each in fields(Quota))
_KEYS = ("name", "sha256", "certificate", "scopes", "expires", "speaks_for_others", *_QUOTAS)
