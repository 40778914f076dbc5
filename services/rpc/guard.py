"""What stands between a server and those who call it: TLS, tokens, quotas, and the files behind them."""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from grpc import aio

from services.rpc.access import Access, Admission
from services.rpc.calls import CallInterceptor
from services.rpc.metrics import SecurityMetrics, ServerMetrics
from services.rpc.options import Security
from services.rpc.quotas import Quotas
from services.rpc.reloading import Reloading
from services.rpc.tls import TlsFiles, open_certificate, server_credentials
from services.rpc.tokens import Tokens, open_tokens

Certificate = TypeVar("Certificate")


class Guard:
    """The guard of one server; reads files when it is made."""

    def __init__(self, security: Security, token: str | None, metrics: ServerMetrics) -> None:
        """`token` may do everything. Raises OptionError for files that can't be used."""
        self._metrics = metrics
        self._needs_client = security.tls_client_ca is not None
        self._tokens, self._certificate = open_files(security, token, metrics, open_certificate)

    @property
    def asks_who_calls(self) -> bool:
        """Whether callers need a token or a certificate that is known."""
        return self._tokens is not None

    def interceptors(self) -> list[CallInterceptor]:
        """What each call passes; nothing where anybody may call."""
        tokens = self._tokens
        if tokens is None:
            return []
        return [Access(Admission(lambda: tokens.value, self._metrics)), Quotas(self._metrics)]

    def add_port(self, server: aio.Server, address: str) -> int:
        """Has `server` listen there, by TLS if there is a certificate. Raises RuntimeError if it can't."""
        if self._certificate is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, server_credentials(self._certificate, self._needs_client))

    def watches(self) -> list[Coroutine[Any, Any, None]]:
        """What keeps the files up to date, until cancelled."""
        return [file.watch() for file in (self._tokens, self._certificate) if file is not None]


def open_files(
    security: Security,
    token: str | None,
    metrics: SecurityMetrics,
    open_tls: Callable[[TlsFiles], Reloading[Certificate]],
) -> tuple[Reloading[Tokens] | None, Reloading[Certificate] | None]:
    """Who may call, and the certificate, as far as they are asked for; `metrics` hear of changes.

    `token` may do everything. Raises OptionError for files that can't be used.
    """
    tokens, certificate = None, None
    if security.tokens is not None or token is not None:
        tokens = open_tokens(security.tokens, token)
        tokens.on_read = metrics.files.labels("tokens").set
    if security.tls_cert is not None and security.tls_key is not None:
        certificate = open_tls(TlsFiles(security.tls_cert, security.tls_key, security.tls_client_ca))
        certificate.on_read = metrics.files.labels("tls").set
    return tokens, certificate
