"""The gateway as an ASGI application: its routes, what stands around them, and how it is described."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.types import ASGIApp

import plaudit
from services.gateway import openrlhf, problems, rerank, routes, vllm
from services.gateway.access import HttpAccess, HttpCertificates
from services.gateway.asking import PROBLEMS, RewardService, naming
from services.gateway.metrics import HttpMetrics
from services.gateway.middleware import OPERATIONS, Bookkeeping, WholeRequests
from services.gateway.paths import Paths
from services.gateway.texts import HttpTexts
from services.gateway.upstream import Upstream
from services.rpc.tokens import Tokens

if TYPE_CHECKING:
    from services.rpc.oidc import Issuer

ROUTERS = (routes.router, rerank.router, openrlhf.router, vllm.router)
operations = APIRouter(tags=["Operations"])


def gateway_app(
    upstream: Upstream,
    metrics: HttpMetrics | None = None,
    tokens: Callable[[], Tokens] | None = None,
    issuer: "Issuer | None" = None,
    log_texts: bool = False,
) -> ASGIApp:
    """The application; `upstream` is closed when it shuts down. Anybody may ask without `tokens`.

    `issuer` is whose JWTs are good beside them. With `log_texts` bodies, and what faults say, are logged.
    """
    metrics = metrics or HttpMetrics()
    described = described_app(upstream, metrics)
    inner: ASGIApp = WholeRequests(HttpTexts(described) if log_texts else described)
    if tokens is not None:
        inner = HttpAccess(inner, tokens, metrics, lambda: upstream.authorization, issuer)
    return Bookkeeping(HttpCertificates(inner, metrics), metrics, log_texts)


def described_app(upstream: Upstream, metrics: HttpMetrics) -> FastAPI:
    """The routes, which FastAPI describes under /openapi.json and /docs."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await upstream.close()

    app = FastAPI(
        title="Plaudit",
        summary="A reward model over HTTP.",
        version=plaudit.__version__,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,  # few clients send a body again; a path that isn't there is a problem
        telemetry={  # a span for each request, where services.rpc.tracing traces the process, and no more
            "exclude": lambda scope: scope["path"] in OPERATIONS,
            "operation_spans": False,
            "metrics": False,
            "logs": False,
            "auto_configure": False,
        },
    )
    app.state.upstream, app.state.metrics = upstream, metrics
    problems.install(app)
    for router in (*ROUTERS, operations):
        app.include_router(router)
    describe = app.openapi
    app.openapi = lambda: _with_problems(describe())  # type: ignore[method-assign]
    return app


@operations.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process lives, whatever the reward service does."""
    return {"status": "alive"}


@operations.get("/readyz", responses=PROBLEMS)
async def readyz(reward: RewardService) -> dict[str, str]:
    """The reward service can be reached and is ready."""
    with naming(Paths()):
        await reward.check_ready()
    return {"status": "ready"}


@operations.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus metrics, as text."""
    registry = request.app.state.metrics.registry
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _with_problems(schema: dict[str, Any]) -> dict[str, Any]:
    """FastAPI describes every body as the route's own media type; failures have another."""
    for methods in schema["paths"].values():
        for operation in methods.values():
            content = operation["responses"].get("default", {}).get("content", {})
            if "application/json" in content:
                content[problems.MEDIA_TYPE] = content.pop("application/json")
    return schema
