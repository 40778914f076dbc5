"""Addresses as people write them, and as gRPC wants them."""

import ipaddress
import re

from plaudit.clients.errors import InvalidArgument


def _host_and_port(address: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})", address)
    if not match or not 0 < int(match["port"]) < 65536:
        raise InvalidArgument.at(
            "address", f"{address!r} is not host:port, such as 127.0.0.1:50052; give a list of several"
        )
    return match["host"], int(match["port"])


def target_of(address: str) -> str:
    """Raises InvalidArgument for what isn't host:port.

    The dns resolver gives all addresses of a name, and asks again when one is lost.
    """
    host, port = _host_and_port(address)
    return f"dns:///{host}:{port}"


def is_loopback(target: str) -> bool:
    """Whether `target`, as target_of gives it, is this machine."""
    host, _ = _host_and_port(target.removeprefix("dns:///"))
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
