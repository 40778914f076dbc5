"""TLS of a server: its certificate, the callers' CA, and the names in a caller's certificate.

The files are PEM. What changes in them holds for the next handshake; connections that are open go on.
"""

import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc

from services.rpc.options import OptionError, Security
from services.rpc.reloading import Reloading

Made = TypeVar("Made")


@dataclass(frozen=True)
class TlsFiles:
    """Where a server's certificate is."""

    certificate: Path
    """With the chain up to a CA that callers trust."""
    key: Path
    client_ca: Path | None = None
    """Callers must have a certificate of one of these CAs."""


def tls_files(security: Security) -> TlsFiles | None:
    """Where the certificate is, if there is one."""
    certificate, key, client_ca = security.pem_files()
    return None if certificate is None or key is None else TlsFiles(certificate, key, client_ca)


def open_certificate(files: TlsFiles) -> "Reloading[grpc.ServerCertificateConfiguration]":
    """The certificate as gRPC wants it. Raises OptionError for files that can't be read or don't fit."""

    def make(_: ssl.SSLContext, contents: Sequence[bytes]) -> grpc.ServerCertificateConfiguration:
        certificate, key, *client_ca = contents
        return grpc.ssl_server_certificate_configuration([(key, certificate)], *client_ca)

    return _open(files, make)


def open_context(files: TlsFiles) -> "Reloading[ssl.SSLContext]":
    """The certificate as Python's own TLS wants it. Raises OptionError as `open_certificate` does."""
    return _open(files, lambda context, _: context)


def newest_context(current: "Reloading[ssl.SSLContext]") -> ssl.SSLContext:
    """A context for one server's whole life: every handshake takes certificate and CAs from the newest."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = current.value.verify_mode  # which TLS takes over before the callback
    context.num_tickets = 0  # each connection shows its certificate: none goes on from one that was let in
    context.options |= ssl.OP_NO_TICKET
    if context.verify_mode is not ssl.CERT_NONE:
        context.minimum_version = ssl.TLSVersion.TLSv1_3  # 1.2 resumes by ids, too, which can't be turned off

    def take(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.context = current.value

    context.sni_callback = take  # is called without a name, too
    return context


def server_credentials(
    certificate: "Reloading[grpc.ServerCertificateConfiguration]", needs_client: bool
) -> grpc.ServerCredentials:
    """Credentials whose every handshake has the newest certificate."""
    given = certificate.value

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        if certificate.value is given:
            return None
        given = certificate.value
        return given

    # None, which the stubs don't know, says that nothing has changed.
    return grpc.dynamic_ssl_server_credentials(given, fetch, needs_client)  # type: ignore[arg-type]


def certificate_names(auth_context: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """Who a verified caller is: the URIs (SPIFFE) and DNS names of its certificate, else its common name.

    The common name counts only in a certificate without the others, as in RFC 6125: a CA may let anybody
    choose it.
    """
    if b"ssl" not in auth_context.get("transport_security_type", ()):
        return ()
    found = [*auth_context.get("peer_uri", ()), *auth_context.get("peer_dns", ())]
    return tuple(
        name.decode("utf-8", "replace") for name in found or auth_context.get("x509_common_name", ())
    )


def subject_names(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """As certificate_names, of a verified certificate in the form that Python's own TLS gives."""
    alternative: Sequence[tuple[str, str]] = certificate.get("subjectAltName", ())
    found = [name for wanted in ("URI", "DNS") for kind, name in alternative if kind == wanted]
    subject: Sequence[Sequence[tuple[str, str]]] = certificate.get("subject", ())
    common = [value for part in subject for key, value in part if key == "commonName"]
    return tuple(found or common)


def certificate_end(certificate: Mapping[str, Any]) -> float:
    """When it expires, in Unix time; of a certificate as in `subject_names`."""
    return float(ssl.cert_time_to_seconds(certificate["notAfter"]))


def _open(files: TlsFiles, make: Callable[[ssl.SSLContext, Sequence[bytes]], Made]) -> "Reloading[Made]":
    paths = [files.certificate, files.key, *([files.client_ca] if files.client_ca else [])]

    def parse(contents: Sequence[bytes]) -> Made:
        context = _context(files)
        if contents != [path.read_bytes() for path in paths]:
            raise OptionError("the files changed while they were read")  # they are read again in a second
        return make(context, contents)

    return Reloading("--tls-cert", paths, parse)


def _context(files: TlsFiles) -> ssl.SSLContext:
    """Raises OptionError naming the option."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(files.certificate, files.key, password="")  # not asked for at a terminal
    except (OSError, ValueError) as error:
        raise OptionError(
            f"--tls-cert {files.certificate} and --tls-key {files.key} should be a certificate and its key "
            f"in PEM, not encrypted: {error}"
        ) from None
    if files.client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(files.client_ca)
        except (OSError, ValueError) as error:
            raise OptionError(
                f"--tls-client-ca {files.client_ca} should be certificates in PEM: {error}"
            ) from None
    return context
