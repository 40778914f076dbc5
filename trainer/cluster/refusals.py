"""What the API server's refusals mean."""

import json
from typing import TYPE_CHECKING, Any

from trainer.cluster.errors import (
    ApiRefused,
    ApiUnreachable,
    Changed,
    ClusterError,
    FieldsTaken,
    NotAllowed,
    NotThere,
)

if TYPE_CHECKING:
    from kubernetes.client.exceptions import ApiException

UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT = 401, 403, 404, 409
FINAL = frozenset({UNAUTHORIZED, FORBIDDEN})
"""Statuses after which a watch isn't begun anew."""


def refusal(error: "ApiException", verb: str, what: str) -> ClusterError:
    """The error for a request to `verb` `what` that is not worth a second try."""
    said = reason(error)
    if not error.status:  # no answer at all: its certificate, for example
        return ApiUnreachable(f"{verb} {what}: {said}")
    if error.status == UNAUTHORIZED:
        return NotAllowed(f"{verb} {what}: the API server doesn't know this account ({said}); log in again")
    if error.status == FORBIDDEN and " cannot " in said:  # other limits, such as a quota, are 403, too
        return NotAllowed(f"{verb} {what}: {said}")
    if error.status == CONFLICT and (taken := _taken(error)):
        return FieldsTaken(
            f"{what}: others manage fields of it: {taken}; give the run another --name, or delete {what}"
        )
    kind = {NOT_FOUND: NotThere, CONFLICT: Changed}.get(error.status, ApiRefused)
    return kind(f"{verb} {what}: {said}")


def reason(error: "ApiException") -> str:
    """What the server said, in one line."""
    said = _status(error).get("message") or f"{error.status or ''} {error.reason}"
    return " ".join(str(said).split())


def asked_pause(error: "ApiException") -> float | None:
    """Seconds after which the server wants to be asked again, if it says."""
    asked = str((error.headers or {}).get("Retry-After", ""))
    return float(asked) if asked.isdecimal() else None


def _taken(error: "ApiException") -> str:
    """Managers and their fields, as `kubectl (.data.ppo.toml)`."""
    causes = (_status(error).get("details") or {}).get("causes") or ()
    found = [each for each in causes if each.get("reason") == "FieldManagerConflict"]
    return ", ".join(f"{_manager(each['message'])} ({each['field']})" for each in found)


def _manager(message: str) -> str:
    """Of `conflict with "kubectl" using v1` the name."""
    return message.split('"')[1] if '"' in message else message


def _status(error: "ApiException") -> dict[str, Any]:
    """The server's Status object; empty where a proxy answered instead."""
    try:
        status = json.loads(error.body or "")
    except ValueError:
        return {}
    return status if isinstance(status, dict) else {}
