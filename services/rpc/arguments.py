"""Options that every server's command line has, also the trainer's and the gateway's. Imports no gRPC."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

TlsCert: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert",
        envvar="PLAUDIT_TLS_CERT",
        help="PEM of the server's certificate and chain, or a directory with tls.crt and tls.key.",
    ),
]
TlsKey: TypeAlias = Annotated[
    Path | None, typer.Option("--tls-key", envvar="PLAUDIT_TLS_KEY", help="PEM of the certificate's key.")
]
TlsClientCa: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--tls-client-ca",
        envvar="PLAUDIT_TLS_CLIENT_CA",
        help="PEM of the CAs of which every caller must have a certificate, or a directory with ca.crt.",
    ),
]
TokensFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--tokens",
        metavar="FILE",
        envvar="PLAUDIT_TOKENS",
        help="TOML of who may call what; see docs/security.md.",
    ),
]
OidcIssuer: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--oidc-issuer",
        metavar="ISSUER",
        envvar="PLAUDIT_OIDC_ISSUER",
        help="Whose JWTs are good, as in their claim 'iss'.",
    ),
]
OidcAudience: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--oidc-audience",
        metavar="NAME",
        envvar="PLAUDIT_OIDC_AUDIENCE",
        help="What this server is called in the JWTs' claim 'aud'.",
    ),
]
OidcJwks: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--oidc-jwks",
        metavar="FILE|URL",
        envvar="PLAUDIT_OIDC_JWKS",
        help="The issuer's public keys, a JSON Web Key Set.",
    ),
]
Insecure: TypeAlias = Annotated[
    bool,
    typer.Option("--insecure", envvar="PLAUDIT_INSECURE", help="Allow plaintext beyond this machine."),
]
MetricsPlaintext: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--metrics-plaintext",
        envvar="PLAUDIT_METRICS_PLAINTEXT",
        help="Metrics in plaintext with TLS, too, for scrapers that can't speak it.",
    ),
]
LogTexts: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--log-texts",
        envvar="PLAUDIT_LOG_TEXTS",
        help="Put prompts, responses and what faults say into log and traces; they are left out otherwise.",
    ),
]
HealthAddress: TypeAlias = Annotated[
    str | None, typer.Option(help="HOST:PORT of a plaintext port for health alone; none without it.")
]
Reflection: TypeAlias = Annotated[bool, typer.Option(help="Serve reflection and channelz.")]
ROOTS_KEY = "PLAUDIT_ROOTS"
ROOTS_HELP = "Folders below which all paths in the configuration must lie; it may name any without."
"""Of `--roots`, which those have who read paths from a file: the trainer and the reward server."""
