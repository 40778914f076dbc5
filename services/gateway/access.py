"""Who may ask the gateway, where it asks: a path needs a scope, and what has none isn't there.

Without a tokens file or an issuer of JWTs nothing but certificates, where TLS asks for them, stands in the
way, and the reward service sees its callers' own tokens.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from services.errors import NotServing, Overloaded, PermissionDenied, Unauthenticated
from services.gateway.metrics import HttpMetrics
from services.gateway.middleware import peer_of
from services.gateway.problems import ProblemError
from services.gateway.upstream import on_behalf
from services.rpc.access import Admission, Shown, tell_refused
from services.rpc.quotas import Quotas
from services.rpc.scopes import OPEN
from services.rpc.tokens import Tokens, identity

if TYPE_CHECKING:
    from services.rpc.oidc import Issuer

HEALTH = frozenset({"/healthz", "/readyz"})
ROUTES = {
    **dict.fromkeys(HEALTH, OPEN),
    "/v1/score": "score",
    "/v1/rank": "score",
    "/v1/compare": "score",
    "/v1/models": "score",
    "/v1/rerank": "score",
    "/v2/rerank": "score",
    "/rerank": "score",
    "/get_reward": "score",
    "/score": "score",
    "/pooling": "score",
    "/metrics": "admin",
    "/openapi.json": "admin",
    "/docs": "admin",
    "/docs/oauth2-redirect": "admin",
}
"""The scope of each path, whatever the method."""
CERTIFICATE = "plaudit.certificate"
"""Where a request's ASGI state has the names in its caller's certificate ..."""
EXPIRES = "plaudit.expires"
"""... and when that certificate expires, in Unix time."""


class HttpAccess:
    """Turns away who may not ask, counts quotas, and asks on behalf of who may."""

    def __init__(
        self,
        app: ASGIApp,
        tokens: Callable[[], Tokens],
        metrics: HttpMetrics,
        authorization: Callable[[], str],
        issuer: "Issuer | None" = None,
    ) -> None:
        """`tokens` tells who may ask now, and `issuer` whose a JWT is, where those are good.

        `authorization` tells the gateway's own, for the reward service.
        """
        self._app = app
        self._admission = Admission(tokens, metrics, issuer)
        self._quotas = Quotas(metrics)
        self._authorization = authorization

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ProblemError before anything of the body is read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        on_behalf.set(replace(on_behalf.get(), authorization=self._authorization()))
        try:
            if ROUTES.get(scope["path"]) != OPEN:
                await self._admit(scope)
            with self._quotas.counted():
                await self._app(scope, receive, send)
        except (Unauthenticated, PermissionDenied, Overloaded, NotServing) as refused:
            raise _problem(refused) from None

    async def _admit(self, scope: Scope) -> None:
        shown, needed = _shown(scope), ROUTES.get(scope["path"])
        self._admission.listen_to(shown)
        caller = await self._admission.identify(shown)
        if needed is None:
            raise ProblemError(HTTPStatus.NOT_FOUND, "NOT_FOUND", "Not Found; /docs lists what there is")
        self._admission.check_scope(shown, caller, needed)
        self._admission.remember(shown)
        identity.set(caller)
        told = Headers(scope=scope).get("x-plaudit-caller")
        on_behalf.set(replace(on_behalf.get(), caller=caller.name_of(told)))


class HttpCertificates:
    """Turns away whose certificate has expired: connections last longer than their handshake."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ProblemError, which ends the connection: so that the log isn't filled takes no more."""
        if scope.get("state", {}).get(EXPIRES, math.inf) < time.time():
            words = "the certificate of this connection has expired; make another one"
            tell_refused(self._metrics, _shown(scope), "expired", words)
            raise ProblemError(HTTPStatus.UNAUTHORIZED, "UNAUTHENTICATED", words, is_last=True)
        await self._app(scope, receive, send)


class HealthAlone:
    """Of an application, its health and nothing else: for a port without TLS."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 404 to the rest."""
        known = scope["type"] == "http" and scope["path"] in HEALTH
        await (self._app if known else PlainTextResponse("Not Found", 404))(scope, receive, send)


def _shown(scope: Scope) -> Shown:
    host, (_, port) = peer_of(scope), scope.get("client") or ("", 0)
    path = scope["raw_path"].decode("ascii", "replace")  # what is in it can't end a log line
    authorization = Headers(scope=scope).get("authorization")
    names = scope.get("state", {}).get(CERTIFICATE, ())
    return Shown(f"{scope['method']} {path}", f"{host}:{port}", host, authorization, names)


def _problem(refused: Unauthenticated | PermissionDenied | Overloaded | NotServing) -> ProblemError:
    match refused:
        case Unauthenticated():
            return ProblemError(HTTPStatus.UNAUTHORIZED, "UNAUTHENTICATED", str(refused))
        case PermissionDenied():
            return ProblemError(HTTPStatus.FORBIDDEN, "PERMISSION_DENIED", str(refused))
        case NotServing():
            status, code = HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE"
        case _:
            status, code = HTTPStatus.TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED"
    return ProblemError(status, code, str(refused), retry_after=refused.retry_after)
