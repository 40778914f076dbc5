"""Bodies of requests and answers in the log: only where an operator asks for it by `--log-texts`."""

import json
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.rpc.texts import shortened, shown

MOST_BYTES = 4000
"""Of a body that isn't JSON."""

log = logging.getLogger("services.gateway.texts")


class HttpTexts:
    """A line for each body, in and out. Within WholeRequests: what is refused before isn't shown."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Shows what is asked, by POST alone, and its answer."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return

        async def receive_shown() -> Message:
            message = await receive()
            _write("asked", scope, message)
            return message

        async def send_shown(message: Message) -> None:
            _write("answered", scope, message)
            await send(message)

        await self._app(scope, receive_shown, send_shown)


def _write(verb: str, scope: Scope, message: Message) -> None:
    if body := message.get("body"):
        log.info("%s %s %s", scope["raw_path"].decode("ascii", "replace"), verb, _line(body))


def _line(body: bytes) -> str:
    try:
        return repr(shown(json.loads(body)))
    except (ValueError, RecursionError):
        return repr(shortened(body, MOST_BYTES))
