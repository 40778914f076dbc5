"""Who calls, and whether they may: everything is closed but to those who hold its scope.

A caller shows a token (`authorization: Bearer TOKEN`) or, where TLS asks for one, its certificate. A call
that has begun goes to its end; in a stream, each message is held against the tokens again, so one whose
token is revoked or expires ends with its next message.
"""

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.errors import Overloaded, PermissionDenied, Unauthenticated
from services.rpc.calls import Call, CallInterceptor
from services.rpc.failures import Failures
from services.rpc.metrics import SecurityMetrics
from services.rpc.scopes import OPEN, scope_of
from services.rpc.tls import certificate_names
from services.rpc.tokens import Identity, Tokens, identity

MOST_KNOWN = 4096
"""Callers that are remembered to have been right."""

log = logging.getLogger("services.rpc.access")


@dataclass(frozen=True)
class Shown:
    """What a caller shows of itself."""

    what: str
    """What it asks for, for the log."""
    peer: str
    """Where it calls from, for the log."""
    host: str
    """The peer without its port: whose failures are counted."""
    authorization: str | None
    """The header; without one the certificate counts."""
    names: tuple[str, ...] = ()
    """Those in its certificate."""

    @property
    def credential(self) -> int:
        """Stands for what is shown; a keyed hash, made anew by each process."""
        return hash(self.names if self.authorization is None else self.authorization)


class Admission:
    """Tells who calls and turns away who may not, over gRPC and over HTTP."""

    def __init__(
        self, tokens: Callable[[], Tokens], metrics: SecurityMetrics, failures: Failures | None = None
    ) -> None:
        """`tokens` tells who may call now."""
        self._tokens = tokens
        self._metrics = metrics
        self._failures = failures or Failures()
        self._known: OrderedDict[int, None] = OrderedDict()

    def listen_to(self, shown: Shown) -> None:
        """Raises Overloaded for a peer that fails all the time, and costs no hashing.

        Who has been right before isn't held up by others behind the same address.
        """
        wait = self._failures.wait(shown.host)
        if wait and shown.credential not in self._known:
            self._metrics.refused.labels("failures").inc()
            raise Overloaded(f"too many calls of this peer failed; come back in {wait:.2f} s", wait)

    def identify(self, shown: Shown) -> Identity:
        """Whose credential it is. Raises Unauthenticated."""
        tokens = self._tokens()
        if shown.authorization is not None:
            scheme, _, token = shown.authorization.partition(" ")
            found = tokens.of_token(token.strip())
            if scheme.lower() != "bearer" or found is None:
                raise self._unknown(shown, "unknown", "the token opens nothing here: wrong, or revoked")
        else:
            found = tokens.of_certificate(shown.names)
            if found is None and shown.names:
                words = f"the certificate of {', '.join(shown.names)} opens nothing"
                raise self._unknown(shown, "unknown", words)
        if found is None:
            raise self._unknown(shown, "missing", "no token; send 'authorization: Bearer TOKEN'")
        if found.is_expired:
            raise self._unknown(shown, "expired", f"the token or certificate of {found.name!r} has expired")
        return found

    def check_scope(self, shown: Shown, caller: Identity, scope: str | None) -> None:
        """Raises PermissionDenied unless `caller` has the scope; None is nobody's."""
        if scope is None:
            raise self._denied(shown, caller, "nobody may call this method: no scope opens it")
        if scope not in caller.scopes:
            words = f"this needs the scope {scope!r}, which the caller doesn't have"
            raise self._denied(shown, caller, words)

    def remember(self, shown: Shown) -> None:
        """It was let in."""
        known = shown.credential
        self._known[known] = None
        self._known.move_to_end(known)
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)

    def _unknown(self, shown: Shown, reason: str, words: str) -> Unauthenticated:
        self._refused(shown, reason, words)
        return Unauthenticated(words)

    def _denied(self, shown: Shown, caller: Identity, words: str) -> PermissionDenied:
        self._refused(shown, "scope", f"{words} ({caller.name or 'PLAUDIT_TOKEN'})")
        return PermissionDenied(words)

    def _refused(self, shown: Shown, reason: str, words: str) -> None:
        self._metrics.refused.labels(reason).inc()
        # Who fails all the time doesn't fill the log.
        level = logging.DEBUG if self._failures.wait(shown.host) else logging.WARNING
        log.log(level, "%s refused to %s: %s", shown.what, shown.peer, words)
        self._failures.count(shown.host)


class Access(CallInterceptor):
    """Turns away who may not call a method."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Raises Unauthenticated, PermissionDenied, and Overloaded for a peer that fails all the time."""
        if scope_of(call.service, call.method) != OPEN:
            shown = _shown(call)
            self._admission.listen_to(shown)
            identity.set(self._admit(call, shown))
            self._admission.remember(shown)
        yield

    def received(self, call: Call, request: object) -> None:
        """Looks again in a stream; the one message of other calls comes before `around`."""
        if call.asks_by_stream:
            self._look_again(call)

    def sent(self, call: Call) -> None:
        """Looks again in a stream."""
        if call.responds_by_stream:
            self._look_again(call)

    def _look_again(self, call: Call) -> None:
        if scope_of(call.service, call.method) != OPEN:
            self._admit(call, _shown(call))

    def _admit(self, call: Call, shown: Shown) -> Identity:
        found = self._admission.identify(shown)
        self._admission.check_scope(shown, found, scope_of(call.service, call.method))
        return found


def _shown(call: Call) -> Shown:
    peer, header = str(call.context.peer()), call.header("authorization")
    names = certificate_names(call.context.auth_context()) if header is None else ()
    return Shown(f"{call.service}/{call.method}", peer, peer.rpartition(":")[0], header, names)
