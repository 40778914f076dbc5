"""Tokens and scopes: what opens which part of Plaudit, and how a token is made and kept.

A token is 256 random bits. Nobody can guess it, so a plain SHA-256 of it is all that a server needs to
keep: slow, salted hashes protect passwords, which people choose and others can try in order.
"""

import hashlib
import json
import secrets
from collections.abc import Sequence
from datetime import date

SCOPES = {
    "score": "reward models: scores, ranks, comparisons, also over the open inference protocol",
    "generate": "the policy's responses, and which weights it serves",
    "logprobs": "the reference's log-probabilities",
    "weights:push": "new weights for the policy",
    "trainer:read": "where a run stands",
    "trainer:control": "stopping a run",
    "admin": "reflection and channelz",
}
"""What each scope opens. None includes another."""

CALLER_NAME = r"[\w.@-]{1,100}"
"""What callers may be called, in ASCII."""
_PREFIX = "plaudit_"
"""Makes tokens findable in what shouldn't hold any."""
_RANDOM_BYTES = 32


def new_token() -> str:
    """A token that nobody had before."""
    return _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def token_digest(token: str) -> str:
    """What a tokens file holds of a token, in hex."""
    return hashlib.sha256(token.encode()).hexdigest()


def token_entry(
    name: str,
    token: str,
    scopes: Sequence[str],
    expires: date | None = None,
    speaks_for_others: bool = False,
) -> str:
    """The lines that a tokens file needs for a token."""
    lines = ["[[token]]", f"name = {json.dumps(name)}", f'sha256 = "{token_digest(token)}"']
    lines.append(f"scopes = {json.dumps(list(scopes))}")
    if expires is not None:
        lines.append(f"expires = {expires.isoformat()}")
    if speaks_for_others:
        lines.append("speaks_for_others = true")
    return "\n".join(lines) + "\n"
