"""How a server is told to run."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest request or response; a weight push comes in chunks well below it."""


class OptionError(Exception):
    """An option has a value that can't work; the message names the option and the fix."""


@dataclass(frozen=True)
class Security:
    """Who may reach a server, and over what. docs/security.md says how to turn it on."""

    tls_cert: Path | None = None
    """PEM of the server's certificate and its chain; plaintext without it."""
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    """PEM of the CAs of which every caller must have a certificate."""
    tokens: Path | None = None
    """TOML of the callers, in tokens.py."""

    @property
    def has_tls(self) -> bool:
        """Whether there is TLS."""
        return self.tls_cert is not None

    def check(self) -> None:
        """Raises OptionError for files that make no sense without others."""
        if (self.tls_cert is None) is not (self.tls_key is None):
            missing = "--tls-key" if self.tls_key is None else "--tls-cert"
            raise OptionError(f"{missing} is missing; --tls-cert and --tls-key go together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise OptionError("--tls-client-ca needs --tls-cert and --tls-key: there is no TLS without them")


@dataclass(frozen=True)
class ServerOptions:
    """Everything about a server but its model. Raises OptionError from `check`."""

    address: str = "127.0.0.1:0"
    """HOST:PORT to listen on; port 0 lets the system choose."""
    metrics_address: str | None = None
    """HOST:PORT of the Prometheus endpoint, in plaintext with TLS, too; none without it."""
    insecure: bool = False
    """Allow plaintext on an address other machines can reach."""
    token: str | None = field(default=None, repr=False)
    """Bearer token that may do everything, beside those of `security.tokens`."""
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

    def check(self) -> None:
        """Refuses what can't work."""
        if self.log_format not in ("text", "json"):
            raise OptionError(f"--log-format is {self.log_format!r}; use text or json")
        if self.grace_s < 0:
            raise OptionError(f"--grace is {self.grace_s}; use 0 seconds or more")
        if self.token is not None and not self.token.strip():
            raise OptionError("PLAUDIT_TOKEN is set but empty; unset it or give a token")
        self.security.check()
        if self.health_address is not None:
            parse_address(self.health_address, "--health-address")
        if self.metrics_address is not None:
            parse_address(self.metrics_address, "--metrics-address")
        if self.security.has_tls:  # the other ports are plaintext: who names them asks for that
            return
        self._check_reachable("--address", self.address, "give --tls-cert and --tls-key, ")
        if self.metrics_address is not None:
            self._check_reachable("--metrics-address", self.metrics_address)

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
