"""How a server's process is asked to stop: by a signal, or by the end of its parent."""

import asyncio
import os
import signal

EXIT_INTERRUPTED = 130
PARENT_POLL_S = 0.5


def stop_request() -> asyncio.Future[str]:
    """Ends with the reason when the process is asked to stop. A second SIGINT leaves at once."""
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[str] = loop.create_future()

    def ask(reason: str) -> None:
        if not asked.done():
            asked.set_result(reason)
        elif reason == "SIGINT":
            os._exit(EXIT_INTERRUPTED)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask, number.name)
    return asked


async def watch_parent(parent: int | None, asked: asyncio.Future[str]) -> None:
    """Asks the process to stop when `parent`, if there is one, isn't its parent any more."""
    while parent is not None and not asked.done():
        if os.getppid() != parent:
            asked.set_result("the end of its parent")
        await asyncio.sleep(PARENT_POLL_S)
