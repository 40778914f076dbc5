"""JWTs of an OpenID Connect issuer: who shows one, until when, and what it may.

Its issuer, audience, times and signature are checked, by the issuer's public keys (jwks.py). The scopes are
those of ours that its `scope` or `scp` claim names; the caller is its `sub`.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt

from plaudit.access import SCOPES, token_digest
from services.errors import NotServing
from services.rpc.jwks import ALGORITHMS, Key, Keys
from services.rpc.tokens import Identity, Refused

LEEWAY_S = 30
"""By which the issuer's clock and ours may differ."""
MOST_CHARACTERS = 8192
"""Of a token; what gRPC takes as a header is about that much."""
MOST_KNOWN = 4096
"""Tokens that aren't verified again while their key is the issuer's."""
MOST_SCOPES = 1000
_SUBJECT = r"[!-~]([ -~]{0,253}[!-~])?"
"""OpenID Connect's own bounds: ASCII, 255 characters."""


@dataclass(frozen=True)
class _Known:
    """A token that was good, and the key that says so."""

    identity: Identity
    kid: str | None
    key: Key


class _OtherKey(Refused):
    """Its key isn't known: perhaps not yet."""


class Issuer:
    """Tells whose a JWT is. All methods belong to one event loop; the work is done in threads."""

    def __init__(self, name: str, audience: str, keys: Keys) -> None:
        """`name` and `audience` as they are in its tokens."""
        self._name = name
        self._audience = audience
        self._keys = keys
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def learn(self, token: str) -> Identity:
        """Whose it is, verified unless it is known. Raises Refused, and NotServing without the keys."""
        digest = token_digest(token)
        found = self._remembered(digest)
        if found is None:
            try:
                found = await asyncio.to_thread(self._verify, token)
            except (_OtherKey, NotServing):
                await self._keys.refresh()
                found = await asyncio.to_thread(self._verify, token)
            self._remember(digest, found)
        return found.identity

    def identity_of(self, token: str) -> Identity:
        """Whose it is, without waiting: for one that `learn` has found good. Raises as `learn`."""
        digest = token_digest(token)
        found = self._remembered(digest)
        if found is None:
            self._remember(digest, found := self._verify(token))
        return found.identity

    async def watch(self) -> None:
        """Keeps the keys up to date until cancelled."""
        await self._keys.watch()

    def _remembered(self, digest: str) -> _Known | None:
        found = self._known.get(digest)
        if found is None or self._keys.of(found.kid) != found.key:
            return None
        self._known.move_to_end(digest)
        return found

    def _remember(self, digest: str, found: _Known) -> None:
        self._known[digest] = found
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)

    def _verify(self, token: str) -> _Known:
        if len(token) > MOST_CHARACTERS:
            raise Refused("unknown", f"the token has more than {MOST_CHARACTERS} characters")
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = self._key(kid)
            claims = jwt.decode(
                token,
                key.jwk,
                algorithms=[name for name in ALGORITHMS if name == key.jwk.algorithm_name],
                issuer=self._name,
                audience=self._audience,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise _refusal(error) from None
        return _Known(self._identity(claims), kid, key)

    def _key(self, kid: str | None) -> Key:
        key = self._keys.of(kid)
        if key is not None:
            return key
        if not self._keys.are_current:
            raise NotServing("the keys of the tokens' issuer can't be had now, and nobody passes without")
        raise _OtherKey("unknown", "the token is signed by no key of the issuer that is trusted here")

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        subject = claims["sub"]
        if not re.fullmatch(_SUBJECT, subject):
            raise Refused("unknown", "the token's claim 'sub' isn't 1 to 255 ASCII characters")
        try:
            expires = datetime.fromtimestamp(int(claims["exp"]) + LEEWAY_S, UTC)
        except (ValueError, OverflowError, OSError):
            raise Refused("unknown", "the token's claim 'exp' is no time") from None
        return Identity(f"{self._name}#{subject}", _scopes(claims), expires)


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    """Those of ours that the token names: words of a string, or strings of a list."""
    named: set[str] = set()
    for claim in ("scope", "scp"):
        value = claims.get(claim)
        words = value.split() if isinstance(value, str) else value
        if isinstance(words, list):
            named.update(word for word in words[:MOST_SCOPES] if isinstance(word, str))
    return frozenset(named & SCOPES.keys())


_REASONS: dict[type[jwt.PyJWTError], tuple[str, str]] = {
    jwt.ExpiredSignatureError: ("expired", "the token has expired"),
    jwt.ImmatureSignatureError: ("unknown", "the token isn't valid yet; are both clocks right?"),
    jwt.InvalidAudienceError: ("unknown", "the token is for another audience"),
    jwt.InvalidIssuerError: ("unknown", "the token is of another issuer than is trusted here"),
    jwt.InvalidAlgorithmError: ("unknown", "the token is signed by another algorithm than its key is for"),
    jwt.InvalidSignatureError: ("unknown", "the token's signature is wrong"),
}


def _refusal(error: jwt.PyJWTError) -> Refused:
    """In words of ours: the library's may hold what is in the token."""
    if isinstance(error, jwt.MissingRequiredClaimError):
        return Refused("unknown", f"the token has no claim {error.claim!r}")
    found = next((words for kind, words in _REASONS.items() if isinstance(error, kind)), None)
    return Refused(*(found or ("unknown", "the token is no JWT that can be read")))
