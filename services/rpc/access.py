"""Who calls, and whether they may: everything is closed but to those who hold its scope.

A caller shows a token or a JWT (`authorization: Bearer TOKEN`) or, where TLS asks for one, its certificate.
A call that has begun goes to its end; in a stream, each message is held against the tokens again, so one
whose token is revoked or expires ends with its next message.
"""

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from services.errors import NotServing, Overloaded, PermissionDenied, Unauthenticated
from services.rpc.calls import Call, CallInterceptor
from services.rpc.failures import Failures
from services.rpc.metrics import SecurityMetrics
from services.rpc.scopes import OPEN, scope_of
from services.rpc.tls import certificate_names
from services.rpc.tokens import Identity, Refused, Tokens, identity

if TYPE_CHECKING:
    from services.rpc.oidc import Issuer  # brings what verifies JWTs, which most servers do without

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
    """The peer without its port: whose failures are counted, with those of its network."""
    authorization: str | None
    """The header; without one the certificate counts."""
    names: tuple[str, ...] = ()
    """Those in its certificate."""

    @property
    def token(self) -> str | None:
        """What is in the header; None if that is something else."""
        scheme, _, token = (self.authorization or "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else None

    @property
    def credential(self) -> int:
        """Stands for what is shown; a keyed hash, made anew by each process."""
        return hash(self.names if self.authorization is None else self.authorization)


class Admission:
    """Tells who calls and turns away who may not, over gRPC and over HTTP."""

    def __init__(
        self, tokens: Callable[[], Tokens], metrics: SecurityMetrics, issuer: "Issuer | None" = None
    ) -> None:
        """`tokens` tells who may call now, and `issuer` whose a JWT is, where those are good."""
        self._tokens = tokens
        self._issuer = issuer
        self._metrics = metrics
        self._failures = Failures()
        self._known: OrderedDict[int, None] = OrderedDict()

    def listen_to(self, shown: Shown) -> None:
        """Raises Overloaded for a peer that fails all the time, and costs no hashing.

        Who has been right before isn't held up by others behind the same address.
        """
        wait = self._failures.wait(shown.host)
        if wait and shown.credential not in self._known:
            self._metrics.refused.labels("failures").inc()
            raise Overloaded(f"too many calls of this peer failed; come back in {wait:.2f} s", wait)

    async def identify(self, shown: Shown) -> Identity:
        """Whose credential it is. Raises Unauthenticated, and NotServing where it can't be told just now."""
        if self._issuer is None or (token := self._jwt(shown)) is None:
            return self.identify_again(shown)
        with self._telling(shown):
            found = await self._issuer.learn(token)
        return self._in_time(shown, replace(found, quota=self._tokens().default))

    def identify_again(self, shown: Shown) -> Identity:
        """As `identify`, at once: for those that it has identified."""
        return self._in_time(shown, self._found(shown))

    def _in_time(self, shown: Shown, found: Identity) -> Identity:
        if found.is_expired:
            raise self._unknown(shown, "expired", f"the token or certificate of {found.name!r} has expired")
        return found

    def _found(self, shown: Shown) -> Identity:
        tokens = self._tokens()
        if self._issuer is not None and (token := self._jwt(shown)) is not None:
            with self._telling(shown):
                return replace(self._issuer.identity_of(token), quota=tokens.default)
        if shown.authorization is not None:
            found = None if shown.token is None else tokens.of_token(shown.token)
            words = "the token opens nothing here: wrong, or revoked"
        else:
            found = tokens.of_certificate(shown.names)
            words = f"the certificate of {', '.join(shown.names)} opens nothing" if shown.names else ""
        if found is None and words:
            raise self._unknown(shown, "unknown", words)
        if found is None:
            raise self._unknown(shown, "missing", "no token; send 'authorization: Bearer TOKEN'")
        return found

    def _jwt(self, shown: Shown) -> str | None:
        """What is shown, if it looks like a JWT and isn't in the tokens file."""
        token = shown.token
        if token is None or token.count(".") != 2 or self._tokens().of_token(token) is not None:
            return None
        return token

    @contextmanager
    def _telling(self, shown: Shown) -> Iterator[None]:
        """Raises what a JWT is refused for as other refusals are."""
        try:
            yield
        except Refused as refused:
            raise self._unknown(shown, refused.reason, str(refused)) from None
        except NotServing:  # which is no failure of the peer's
            self._metrics.refused.labels("keys").inc()
            raise

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
        self._known.pop(shown.credential, None)
        self._refused(shown, reason, words, shown.host)
        return Unauthenticated(words)

    def _denied(self, shown: Shown, caller: Identity, words: str) -> PermissionDenied:
        # Who has been let in before says nothing of others behind the same address.
        whose = f"known {shown.credential}" if shown.credential in self._known else shown.host
        self._refused(shown, "scope", f"{words} ({caller.name or 'PLAUDIT_TOKEN'})", whose)
        return PermissionDenied(words)

    def _refused(self, shown: Shown, reason: str, words: str, whose: str) -> None:
        # Who fails all the time doesn't fill the log.
        level = logging.DEBUG if self._failures.wait(whose) else logging.WARNING
        tell_refused(self._metrics, shown, reason, words, level)
        self._failures.count(whose)


def tell_refused(
    metrics: SecurityMetrics, shown: Shown, reason: str, words: str, level: int = logging.WARNING
) -> None:
    """Counts and logs a caller who is turned away."""
    metrics.refused.labels(reason).inc()
    log.log(level, "%s refused to %s: %s", shown.what, shown.peer, words)


class Access(CallInterceptor):
    """Turns away who may not call a method."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    @asynccontextmanager
    async def around(self, call: Call) -> AsyncIterator[None]:
        """Raises Unauthenticated, PermissionDenied, and Overloaded for a peer that fails all the time.

        NotServing where a JWT comes while its issuer's keys can't be had.
        """
        if (scope := scope_of(call.service, call.method)) != OPEN:
            shown = _shown(call)
            self._admission.listen_to(shown)
            found = await self._admission.identify(shown)
            self._admission.check_scope(shown, found, scope)
            self._admission.remember(shown)
            identity.set(found)
        yield

    def received(self, call: Call, request: object) -> None:
        """Looks again in a stream; the one message of other calls is asked for by leave of `around`."""
        if call.asks_by_stream:
            self._look_again(call)

    def sent(self, call: Call, response: object) -> None:
        """Looks again in a stream."""
        if call.responds_by_stream:
            self._look_again(call)

    def _look_again(self, call: Call) -> None:
        if (scope := scope_of(call.service, call.method)) != OPEN:
            shown = _shown(call)
            self._admission.check_scope(shown, self._admission.identify_again(shown), scope)


def _shown(call: Call) -> Shown:
    peer, header = str(call.context.peer()), call.header("authorization")
    names = certificate_names(call.context.auth_context()) if header is None else ()
    return Shown(f"{call.service}/{call.method}", peer, peer.rpartition(":")[0], header, names)
