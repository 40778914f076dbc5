"""The command line, `python -m services.gateway`."""

import asyncio
import os
from collections.abc import Sequence
from typing import Annotated

import typer

from services.rpc.arguments import (
    HealthAddress,
    Insecure,
    LogTexts,
    MetricsPlaintext,
    OidcAudience,
    OidcIssuer,
    OidcJwks,
    TlsCert,
    TlsClientCa,
    TlsKey,
    TokensFile,
)
from services.rpc.logs import configure_logging
from services.rpc.options import Security, ServerOptions, environment_file


def run_command(arguments: Sequence[str]) -> int:
    """The exit code of a command line."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(
        help="Serves a reward service over HTTP and JSON. Callers' tokens are passed on to it; with --tokens "
        "they are the gateway's to check, and it shows PLAUDIT_TOKEN there."
    )(_main)
    try:
        app(list(arguments), prog_name="python -m services.gateway")
    except SystemExit as end:
        return os.EX_USAGE if end.code == 2 else int(end.code or 0)
    return os.EX_OK


def _main(
    reward: Annotated[
        list[str], typer.Option(help="HOST:PORT of the reward service; again for each replica.")
    ],
    address: Annotated[
        str, typer.Option(help="HOST:PORT to listen on; port 0 takes a free one and prints it.")
    ] = "127.0.0.1:8080",
    metrics_address: Annotated[
        str | None, typer.Option(help="HOST:PORT of the Prometheus endpoint, beside /metrics.")
    ] = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    tokens: TokensFile = None,
    oidc_issuer: OidcIssuer = None,
    oidc_audience: OidcAudience = None,
    oidc_jwks: OidcJwks = None,
    insecure: Insecure = False,
    health_address: HealthAddress = None,
    metrics_plaintext: MetricsPlaintext = False,
    log_format: Annotated[str, typer.Option(help="text or json.")] = "text",
    log_texts: LogTexts = False,
    grace: Annotated[float, typer.Option(help="Seconds that requests in flight get at shutdown.")] = 20.0,
) -> None:
    # after the arguments are known to be right: FastAPI takes a second
    from services.gateway.server import serve
    from services.rpc.tracing import traced

    configure_logging(log_format)
    options = ServerOptions(
        address,
        metrics_address,
        insecure,
        token=os.environ.get("PLAUDIT_TOKEN"),
        token_file=environment_file("PLAUDIT_TOKEN_FILE"),
        grace_s=grace,
        log_format=log_format,
        security=Security(tls_cert, tls_key, tls_client_ca, tokens, oidc_issuer, oidc_audience, oidc_jwks),
        health_address=health_address,
        log_texts=log_texts,
        metrics_plaintext=metrics_plaintext,
    )
    with traced("gateway"):
        raise typer.Exit(asyncio.run(serve(reward, options)))
