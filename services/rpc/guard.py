"""What stands between a server and those who call it: TLS, tokens, quotas, and the files behind them."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from grpc import aio

from services.rpc.access import Access, Admission
from services.rpc.calls import CallInterceptor
from services.rpc.metrics import SecurityMetrics, ServerMetrics
from services.rpc.options import Security
from services.rpc.quotas import Quotas
from services.rpc.reloading import Reloading
from services.rpc.tls import TlsFiles, open_certificate, server_credentials, tls_files
from services.rpc.tokens import Tokens, open_tokens

if TYPE_CHECKING:
    from services.rpc.oidc import Issuer

Certificate = TypeVar("Certificate")


class Guard:
    """The guard of one server; reads files when it is made."""

    def __init__(
        self,
        security: Security,
        token: str | None,
        metrics: ServerMetrics,
        token_file: Path | None = None,
    ) -> None:
        """`token` and those of `token_file` may do everything.

        Raises OptionError for files that can't be used.
        """
        self._metrics = metrics
        self._needs_client = security.tls_client_ca is not None
        self._tokens, self._certificate = open_files(security, token, metrics, open_certificate, token_file)
        self._issuer = open_issuer(security, metrics)

    @property
    def asks_who_calls(self) -> bool:
        """Whether callers need a token or a certificate that is known."""
        return self._tokens is not None

    def interceptors(self) -> list[CallInterceptor]:
        """What each call passes; nothing where anybody may call."""
        tokens = self._tokens
        if tokens is None:
            return []
        admission = Admission(lambda: tokens.value, self._metrics, self._issuer)
        return [Access(admission), Quotas(self._metrics)]

    def add_port(self, server: aio.Server, address: str) -> int:
        """Has `server` listen there, by TLS if there is a certificate. Raises RuntimeError if it can't."""
        if self._certificate is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, server_credentials(self._certificate, self._needs_client))

    def watches(self) -> list[Coroutine[Any, Any, None]]:
        """What keeps the files up to date, until cancelled."""
        every = (self._tokens, self._certificate, self._issuer)
        return [each.watch() for each in every if each is not None]


def open_files(
    security: Security,
    token: str | None,
    metrics: SecurityMetrics,
    open_tls: Callable[[TlsFiles], Reloading[Certificate]],
    token_file: Path | None = None,
) -> tuple[Reloading[Tokens] | None, Reloading[Certificate] | None]:
    """Who may call, and the certificate, as far as they are asked for; `metrics` hear of changes.

    `token` and those of `token_file` may do everything. Raises OptionError for files that can't be used.
    """
    tokens, certificate = None, None
    if security.names_callers or token is not None or token_file is not None:
        tokens = open_tokens(security.tokens, token, token_file)
        tokens.on_read = metrics.files.labels("tokens").set
    if files := tls_files(security):
        certificate = open_tls(files)
        certificate.on_read = metrics.files.labels("tls").set
    return tokens, certificate


def open_issuer(security: Security, metrics: SecurityMetrics) -> "Issuer | None":
    """Whose JWTs are good, if anybody's. Raises OptionError for a file of keys that can't be used."""
    issuer, audience, source = security.oidc_issuer, security.oidc_audience, security.oidc_jwks
    if issuer is None or audience is None or source is None:
        return None
    from services.rpc.jwks import open_keys  # 60 ms that servers without JWTs do without
    from services.rpc.oidc import Issuer

    return Issuer(issuer, audience, open_keys(source, metrics.files.labels("jwks").set))
