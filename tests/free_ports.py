"""Ports to listen on later, or never."""

import contextlib
import random
import socket

BELOW_EPHEMERAL = range(10_000, 30_000)
"""Where the kernel takes no port from for who asks for any: another test's server or call can't get it."""
_random = random.SystemRandom()  # workers that seed alike must not draw alike


def free_port() -> int:
    """A port of this machine where nobody listens."""
    while True:
        port = _random.choice(BELOW_EPHEMERAL)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def free_address() -> str:
    """HOST:PORT where nobody listens."""
    return f"127.0.0.1:{free_port()}"
