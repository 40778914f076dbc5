"""The gateway as a server: bound first, drained when asked."""

import asyncio
import contextlib
import errno
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence

import uvicorn

from plaudit.clients import InvalidArgument
from services.gateway.app import gateway_app
from services.gateway.upstream import Upstream
from services.rpc.options import OptionError, ServerOptions, join_address, parse_address

BACKLOG = 2048
KEEP_ALIVE_S = 75
"""Longer than the minute after which clients and load balancers drop an idle connection: if the server did
it first, a request could be on its way already."""


class Gateway(uvicorn.Server):
    """uvicorn on a socket of ours, and leaving signals to us: its own way to end isn't exit code 0."""

    def __init__(self, reward: Sequence[str], options: ServerOptions) -> None:
        """Listens already. Raises OptionError, and OSError where the address can't be had."""
        options.check()
        try:
            upstream = Upstream(list(reward))
        except InvalidArgument as error:
            raise OptionError(f"--reward: {error.reason}") from None
        self._socket = _listen(options.address)
        self.address = join_address(*self._socket.getsockname()[:2])
        super().__init__(
            uvicorn.Config(
                gateway_app(upstream),
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(options.grace_s),
            )
        )

    async def run_until_asked(self) -> None:
        """Serves until `should_exit` is set; requests in flight then get their grace."""
        await self.serve([self._socket])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield

    def ask_to_stop(self) -> None:
        """Drains; the second time it doesn't wait."""
        self.force_exit = self.should_exit
        self.should_exit = True


@contextlib.asynccontextmanager
async def start_gateway(
    reward: Sequence[str], options: ServerOptions | None = None
) -> AsyncIterator[Gateway]:
    """A running gateway for tests and for use within a process."""
    gateway = Gateway(reward, options or ServerOptions())
    running = asyncio.create_task(gateway.run_until_asked())
    try:
        yield gateway
    finally:
        gateway.ask_to_stop()
        await running


async def serve(reward: Sequence[str], options: ServerOptions) -> int:
    """Serves until SIGTERM or SIGINT; returns the process's exit code."""
    try:
        gateway = Gateway(reward, options)
    except OptionError as error:
        return _fail(str(error), os.EX_USAGE)
    except OSError as error:
        hint = "; choose another port" if error.errno == errno.EADDRINUSE else ""
        return _fail(f"can't listen on {options.address}: {error.strerror}{hint}", os.EX_UNAVAILABLE)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, gateway.ask_to_stop)
    print(f"listening on {gateway.address}", flush=True)
    await gateway.run_until_asked()
    return os.EX_OK


def _listen(address: str) -> socket.socket:
    host, port = parse_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    listening.listen(BACKLOG)
    return listening


def _fail(message: str, code: int) -> int:
    print(f"gateway: {message}", file=sys.stderr, flush=True)
    return code
