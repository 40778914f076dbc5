"""How a server is told to run."""

import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest response."""
MAX_REQUEST_BYTES = 16 * 1024 * 1024
"""Largest request unless a service says otherwise. As objects it takes several times as much."""


class OptionError(Exception):
    """An option has a value that can't work; the message names the option and the fix."""


@dataclass(frozen=True)
class Security:
    """Who may reach a server, and over what. docs/security.md says how to turn it on."""

    tls_cert: Path | None = None
    """PEM of the server's certificate and its chain, or a directory; plaintext without it."""
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    """PEM of the CAs of which every caller must have a certificate, or a directory with a ca.crt."""
    tokens: Path | None = None
    """TOML of the callers, in tokens.py."""
    oidc_issuer: str | None = None
    """Whose JWTs are good; as in their claim `iss`."""
    oidc_audience: str | None = None
    """What this server is called in their claim `aud`."""
    oidc_jwks: str | None = None
    """File or https URL of the issuer's public keys."""

    @property
    def names_callers(self) -> bool:
        """Whether there is something by which callers show who they are."""
        return self.tokens is not None or self.oidc_issuer is not None

    @property
    def has_tls(self) -> bool:
        """Whether there is TLS."""
        return self.tls_cert is not None

    def pem_files(self) -> tuple[Path | None, Path | None, Path | None]:
        """Certificate, key and callers' CA; in a directory they are called as in a TLS Secret of Kubernetes.

        A directory in the place of the certificate brings the key, too, but no CA: whether callers must
        have certificates is always said by `tls_client_ca`.
        """
        key = self.tls_key
        if key is None and self.tls_cert is not None and self.tls_cert.is_dir():
            key = self.tls_cert
        return _pem(self.tls_cert, "tls.crt"), _pem(key, "tls.key"), _pem(self.tls_client_ca, "ca.crt")

    def check(self) -> None:
        """Raises OptionError for files that make no sense without others."""
        cert, key, _ = self.pem_files()
        if (cert is None) is not (key is None):
            missing = "--tls-key" if key is None else "--tls-cert"
            raise OptionError(f"{missing} is missing; --tls-cert and --tls-key go together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise OptionError("--tls-client-ca needs --tls-cert and --tls-key: there is no TLS without them")
        self._check_oidc()

    def _check_oidc(self) -> None:
        given = {
            "--oidc-issuer": self.oidc_issuer,
            "--oidc-audience": self.oidc_audience,
            "--oidc-jwks": self.oidc_jwks,
        }
        missing = [option for option, value in given.items() if value is None]
        if len(missing) == len(given):
            return
        if missing:
            raise OptionError(f"{missing[0]} is missing; {', '.join(given)} go together")
        for option, value in given.items():
            if not re.fullmatch(r"[!-~]{1,200}", value or ""):
                raise OptionError(f"{option} is {value!r}; use 1 to 200 ASCII characters without spaces")
        check_keys_source(self.oidc_jwks or "")


@dataclass(frozen=True)
class ServerOptions:
    """Everything about a server but its model. Raises OptionError from `check`."""

    address: str = "127.0.0.1:0"
    """HOST:PORT to listen on; port 0 lets the system choose."""
    metrics_address: str | None = None
    """HOST:PORT of the Prometheus endpoint, by TLS as `address`; none without it."""
    insecure: bool = False
    """Allow plaintext on an address other machines can reach."""
    token: str | None = field(default=None, repr=False)
    """Bearer token that may do everything, beside those of `security.tokens`."""
    token_file: Path | None = None
    """Such tokens, one a line, read again when the file changes; in the place of `token`."""
    grace_s: float = 20.0
    """Seconds that calls in flight get to finish when the server drains."""
    log_format: str = "text"
    """"text" for people or "json", one object a line."""
    exit_with_parent: int | None = None
    """Process id of the parent to drain with."""
    security: Security = Security()
    health_address: str | None = None
    """HOST:PORT of a plaintext port with nothing but health, for probes that can't speak TLS."""
    reflection: bool = True
    """Whether reflection and channelz are there."""
    log_texts: bool = False
    """Whether prompts, responses and what faults say of them are in log and traces."""
    arrives_s: float = 60.0
    """Seconds in which a call's request, where it has only one, has to be there."""
    unread_s: float = 60.0
    """Seconds that a response of a stream waits for its reader before the stream is cut off."""
    silent_s: float = 300.0
    """Seconds that a stream of requests, to which nothing is owed, waits for one before it is cut off."""
    metrics_plaintext: bool = False
    """Whether metrics are in plaintext with TLS, too, for scrapers that can't speak it."""

    @property
    def metrics_security(self) -> Security:
        """What the Prometheus endpoint goes by."""
        return Security() if self.metrics_plaintext else self.security

    def check(self) -> None:
        """Refuses what can't work."""
        if self.log_format not in ("text", "json"):
            raise OptionError(f"--log-format is {self.log_format!r}; use text or json")
        if self.grace_s < 0:
            raise OptionError(f"--grace is {self.grace_s}; use 0 seconds or more")
        if self.token is not None and not self.token.strip():
            raise OptionError("PLAUDIT_TOKEN is set but empty; unset it or give a token")
        if self.token is not None and self.token_file is not None:
            raise OptionError("PLAUDIT_TOKEN and PLAUDIT_TOKEN_FILE are both set; unset one")
        self.security.check()
        if self.health_address is not None:
            parse_address(self.health_address, "--health-address")
        if self.metrics_address is not None:
            parse_address(self.metrics_address, "--metrics-address")
        if self.security.has_tls:  # plaintext is health, and metrics if asked: each by an option of its own
            return
        self._check_reachable("--address", self.address, "give --tls-cert and --tls-key, ")
        if self.metrics_address is not None:
            self._check_reachable("--metrics-address", self.metrics_address)
        if self.health_address is not None:
            self._check_reachable("--health-address", self.health_address)

    def _check_reachable(self, option: str, address: str, advice: str = "") -> None:
        host, _ = parse_address(address, option)
        if not self.insecure and not is_loopback(host):
            raise OptionError(
                f"{option} {address} can be reached from other machines and traffic isn't encrypted; "
                f"use 127.0.0.1, {advice}or add --insecure if the network is trusted"
            )


def parse_address(address: str, option: str = "--address") -> tuple[str, int]:
    """Host (IPv6 without brackets) and port of "HOST:PORT". Raises OptionError."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise OptionError(f"{option} is {address!r}; use HOST:PORT, for example 127.0.0.1:50051")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """The inverse of `parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _pem(path: Path | None, name: str) -> Path | None:
    return path / name if path is not None and path.is_dir() else path


def is_url(source: str) -> bool:
    """Whether it isn't a file."""
    return "://" in source


def is_loopback_url(url: str) -> bool:
    """Whether the URL is of this machine."""
    return is_loopback(urlsplit(url).hostname or "")


def check_keys_source(source: str) -> None:
    """Raises OptionError for a URL that anybody on the way could answer, or that holds a password."""
    if not is_url(source):
        return
    try:
        url = urlsplit(source)
        host, _ = url.hostname, url.port
    except ValueError as error:
        raise OptionError(f"--oidc-jwks is no URL: {error}") from None
    if not host or "@" in url.netloc:
        raise OptionError("--oidc-jwks should be https://HOST/PATH, without a password, or a file")
    if url.scheme != "https" and not (url.scheme == "http" and is_loopback(host)):
        raise OptionError(
            f"--oidc-jwks is {source!r}; use https or a file, so that nobody on the way can change the keys"
        )


def environment_file(key: str) -> Path | None:
    """The file that a key of the environment names; None where it names none."""
    value = os.environ.get(key)
    return Path(value) if value else None
