"""A connection to the gateway, which waits for the other side no longer than a stated time.

What comes over it and is no HTTP has a problem for an answer, as what the app refuses.
"""

import asyncio
import logging
import random
import time
from contextvars import copy_context
from http import HTTPStatus

import h11
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

from services.gateway import problems
from services.gateway.access import CERTIFICATE, EXPIRES
from services.gateway.problems import ProblemError
from services.rpc import logs
from services.rpc.tls import certificate_end, subject_names

HEAD_S = 30.0
"""A request's head is whole so soon after its first byte, or after a connection begins; nginx takes 60 s."""
UNREAD_S = 60.0
"""An answer that isn't taken for so long is taken by nobody."""
LINGER_S = 2.0
"""For so long what still comes of a broken request is read, for nobody."""
AGE_S = 300.0
"""A connection's first answer after that is its last one. Give or take a tenth, as with gRPC: those that were
made at once don't come back at once."""

log = logging.getLogger("services.gateway.connection")


class Connection(H11Protocol):
    """uvicorn's, which has a time limit for none but what is idle between two requests.

    Nor an age. The state of its requests has the caller's certificate, where TLS asks for one.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As H11Protocol, whose scope has no place for certificates."""
        super().connection_made(transport)
        if certificate := transport.get_extra_info("peercert"):
            shown = {CERTIFICATE: subject_names(certificate), EXPIRES: certificate_end(certificate)}
            self.app_state = {**self.app_state, **shown}
        self.app = _Ageing(self.app, time.monotonic() + AGE_S * random.uniform(0.9, 1.1))
        self._head, self._unread, self._rest = _Wait(transport), _Wait(transport), _Wait(transport)
        self._head.begin(HEAD_S)

    def data_received(self, data: bytes) -> None:
        """Nothing more is made of the rest of a broken request."""
        if not self._rest.has_begun:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more is waited for."""
        self._head.end()
        self._unread.end()
        self._rest.end()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Also has a part of a head come to its end in time, however often more of it comes."""
        super().handle_events()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._head.begin(HEAD_S)
        else:
            self._head.end()

    def send_400_response(self, msg: str) -> None:
        """As a problem, unless the request has its answer, or a part of it: h11 takes no second one.

        The connection ends either way.
        """
        state = self.conn.our_state
        if state is h11.IDLE:  # the head itself is broken
            copy_context().run(self._refuse, Headers())
        elif state is h11.SEND_RESPONSE:
            copy_context().run(self._refuse, Headers(raw=self.headers), self.scope["method"] != "HEAD")
        if self.cycle:
            self.cycle.disconnected = True  # else the route's own answer would be that second one
        self._linger()

    def _linger(self) -> None:
        """Ends the connection, but reads what is on its way: closed over it, it would be reset, and the
        answer with it.
        """
        if not self.transport.can_write_eof():  # by TLS
            self.transport.close()
            return
        self._rest.begin(LINGER_S)
        self.flow.resume_reading()
        try:
            self.transport.write_eof()
        except OSError:  # the caller has left
            self.transport.abort()

    def _refuse(self, headers: Headers, with_body: bool = True) -> None:
        """In a context of its own, since it sets the request's id."""
        request_id = logs.accept_request_id(headers.get("x-request-id"))
        logs.request_id.set(request_id)
        detail = "the request isn't HTTP/1.1: its head is broken or too large, or its body has a broken chunk"
        answer = problems.response(ProblemError(HTTPStatus.BAD_REQUEST, "INVALID_ARGUMENT", detail))
        also = [(b"x-request-id", request_id.encode()), CLOSE_HEADER]
        for event in (
            h11.Response(status_code=400, headers=[*answer.raw_headers, *also], reason=b"Bad Request"),
            h11.Data(data=bytes(answer.body) if with_body else b""),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        log.info("broken request 400")

    def pause_writing(self) -> None:
        """What the other side takes no more of is given up."""
        super().pause_writing()
        self._unread.begin(UNREAD_S)

    def resume_writing(self) -> None:
        """It takes more."""
        super().resume_writing()
        self._unread.end()

    def timeout_keep_alive_handler(self) -> None:
        """Also ends a connection whose last answer nobody has taken."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self.transport.abort()


class _Ageing:
    """The app of one connection, which says in the first answer after a time that it is the last one."""

    def __init__(self, app: ASGIApp, until: float) -> None:
        self._app = app
        self.until = until

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start" and time.monotonic() > self.until:
                message = {**message, "headers": [*message.get("headers", ()), CLOSE_HEADER]}
            await send(message)

        await self._app(scope, receive, send_on)


class _Wait:
    """A wait for the other side, which ends the connection if it lasts too long."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, seconds: float) -> None:
        """From now on, unless it has begun."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._transport.abort)

    @property
    def has_begun(self) -> bool:
        """Whether it lasts."""
        return self._timer is not None

    def end(self) -> None:
        """What was waited for is there."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
