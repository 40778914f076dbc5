"""How a server is told to run."""

import ipaddress
from dataclasses import dataclass, field

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest request or response; a weight push comes in chunks well below it."""


class OptionError(Exception):
    """An option has a value that can't work; the message names the option and the fix."""


@dataclass(frozen=True)
class ServerOptions:
    """Everything about a server but its model. Raises OptionError from `check`."""

    address: str = "127.0.0.1:0"
    """HOST:PORT to listen on; port 0 lets the system choose."""
    metrics_address: str | None = None
    """HOST:PORT of the Prometheus endpoint; none without it."""
    insecure: bool = False
    """Allow plaintext on an address other machines can reach."""
    token: str | None = field(default=None, repr=False)
    """Bearer token that every RPC but health must carry; none without it."""
    grace_s: float = 20.0
    """Seconds that calls in flight get to finish when the server drains."""
    log_format: str = "text"
    """"text" for people or "json", one object a line."""
    exit_with_parent: int | None = None
    """Process id of the parent to drain with."""

    def check(self) -> None:
        """Refuses what can't work."""
        if self.log_format not in ("text", "json"):
            raise OptionError(f"--log-format is {self.log_format!r}; use text or json")
        if self.grace_s < 0:
            raise OptionError(f"--grace is {self.grace_s}; use 0 seconds or more")
        if self.token is not None and not self.token.strip():
            raise OptionError("PLAUDIT_TOKEN is set but empty; unset it or give a token")
        for option, address in (("--address", self.address), ("--metrics-address", self.metrics_address)):
            if address is not None and not is_loopback(parse_address(address, option)[0]):
                self._check_reachable(option, address)

    def _check_reachable(self, option: str, address: str) -> None:
        if not self.insecure:
            raise OptionError(
                f"{option} {address} can be reached from other machines and traffic isn't encrypted; "
                "use 127.0.0.1, or add --insecure if the network is trusted"
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
