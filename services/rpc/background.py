"""A server in a thread of its own, for programs without an event loop: the trainer, and sync tests."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from services.rpc.server import RunningServer, ServerOptions, Service, start_server


@contextmanager
def serve_in_background(
    make_service: Callable[[], Service], options: ServerOptions | None = None
) -> Iterator[RunningServer]:
    """Starts a server, waits until it is ready, and drains it at the end of the block.

    `make_service` is called in the server's thread, where its event loop runs. Raises what starting
    or loading raises. Of the server only its addresses are safe to use outside its thread.
    """
    started: Future[tuple[RunningServer, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        try:
            async with start_server(make_service(), options) as server:
                await server.wait_ready()
                stop = asyncio.Event()
                started.set_result((server, asyncio.get_running_loop(), stop))
                await stop.wait()
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="grpc-server", daemon=True)
    thread.start()
    server, loop, stop = started.result()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
