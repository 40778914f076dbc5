"""A connection to the gateway, which waits for the other side no longer than a stated time."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from services.gateway.access import CERTIFICATE
from services.rpc.tls import subject_names

HEAD_S = 30.0
"""A request's head is whole so soon after its first byte, or after a connection begins; nginx takes 60 s."""
UNREAD_S = 60.0
"""An answer that isn't taken for so long is taken by nobody."""


class Connection(H11Protocol):
    """uvicorn's, which has a time limit for none but what is idle between two requests.

    The state of its requests has the names in the caller's certificate, where TLS asks for one.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As H11Protocol, whose scope has no place for certificates."""
        super().connection_made(transport)
        if certificate := transport.get_extra_info("peercert"):
            self.app_state = {**self.app_state, CERTIFICATE: subject_names(certificate)}
        self._head, self._unread = _Wait(transport), _Wait(transport)
        self._head.begin(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more is waited for."""
        self._head.end()
        self._unread.end()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Also has a part of a head come to its end in time, however often more of it comes."""
        super().handle_events()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._head.begin(HEAD_S)
        else:
            self._head.end()

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


class _Wait:
    """A wait for the other side, which ends the connection if it lasts too long."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, seconds: float) -> None:
        """From now on, unless it has begun."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._transport.abort)

    def end(self) -> None:
        """What was waited for is there."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
