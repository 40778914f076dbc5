"""A TCP proxy that does to connections what networks do: delays, throttles, cuts, resets, black holes."""

import asyncio
import contextlib
import math
import socket
import struct
import threading
from collections import deque
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Literal

PIECE_BYTES, PIECE_SECONDS = 65536, 0.02
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER by which closing sends RST and not FIN."""
LONGEST_S = 10.0

Direction = Literal["requests", "answers"]


@dataclass(frozen=True)
class Fault:
    """What a connection suffers; as it is, nothing."""

    delay: float = 0.0
    """Seconds that each piece is late, in each direction."""
    rate: float = math.inf
    """Bytes a second, in each direction."""
    holds: frozenset[Direction] = frozenset()
    """Where nothing gets through: a black hole. What was held goes on when the fault ends."""
    after: float = math.inf
    """Bytes of a connection, both ways, after which it ends."""
    resets: bool = False
    """Whether they end by RST, as if the server's machine had started anew."""


NONE = Fault()
BLACK_HOLE = Fault(holds=frozenset({"requests", "answers"}))


class ChaosProxy:
    """Between clients and the server at `target`, host:port. A context manager, used from any thread.

    It listens on a free port of this machine unless one is given.
    """

    def __init__(self, target: str, port: int = 0) -> None:
        host, at = target.rsplit(":", 1)
        self._target, self._port = (host, int(at)), port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-proxy", daemon=True)
        self._lines: set[_Line] = set()
        self._fault, self._script = NONE, deque[Fault]()
        self.swallows_answers = False
        """What the server sends next is lost, and all connections with it; set again for each time."""
        self.address = ""
        self.connections, self.cuts, self.passed = 0, 0, 0
        """So far; `passed` is the bytes that came in, both ways."""

    def suffer(self, fault: Fault) -> None:
        """From now on, for all connections, those that there are and those that come."""
        self._do(self._suffer(fault))

    def script(self, faults: Iterable[Fault]) -> None:
        """For the next connections, one each; those after them suffer what all do."""
        self._script.extend(faults)

    def cut(self, resets: bool = False) -> None:
        """Ends every connection there is, with what is still under way in it."""
        self._do(self._cut(resets))

    def hang(self) -> None:
        """Silences every connection there is for good; new ones work: their peer was plugged out."""
        self._do(self._suffer(BLACK_HOLE, only_present=True))

    async def _suffer(self, fault: Fault, only_present: bool = False) -> None:
        if not only_present:
            self._fault = fault
        for line in self._lines:
            line.suffer(fault)

    async def _cut(self, resets: bool) -> None:
        self.cuts += 1
        for line in tuple(self._lines):
            line.cut(resets)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        fault = self._script.popleft() if self._script else self._fault
        try:
            server = await asyncio.open_connection(*self._target)
        except OSError:  # the server is away
            writer.transport.abort()
            return
        line = _Line((reader, writer), server, fault)
        self._lines.add(line)
        try:
            await asyncio.gather(self._pump(line, "requests"), self._pump(line, "answers"))
        except asyncio.CancelledError:  # the proxy closes; asyncio.streams would take it for an error
            pass
        finally:
            self._lines.discard(line)
            line.finish()

    async def _pump(self, line: "_Line", direction: Direction) -> None:
        with contextlib.suppress(OSError):
            while data := await line.receive(direction):
                self.passed += len(data)
                if direction == "answers" and self.swallows_answers:
                    self.swallows_answers = False
                    await self._cut(resets=False)
                await line.send(direction, data)
        line.finish()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname())

    async def _close(self) -> None:
        self._server.close()
        await self._cut(resets=False)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _do(self, act: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(act, self._loop).result(LONGEST_S)

    def __enter__(self) -> "ChaosProxy":
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        if not self._loop.is_closed():
            self._do(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(LONGEST_S)
            self._loop.close()


class _Line:
    """A client's connection and the one to the server for it."""

    def __init__(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        fault: Fault,
    ) -> None:
        self._from = {"requests": client[0], "answers": server[0]}
        self._to = {"requests": server[1], "answers": client[1]}
        self._fault, self._changed = fault, asyncio.Event()
        self._passed, self._ended = 0, False

    def suffer(self, fault: Fault) -> None:
        self._fault = fault
        self._wake()

    async def receive(self, direction: Direction) -> bytes:
        """Few enough bytes that the fault can act between two pieces."""
        most = min(PIECE_BYTES, 1 + self._fault.rate * PIECE_SECONDS)
        return await self._from[direction].read(int(most))

    async def send(self, direction: Direction, data: bytes) -> None:
        """When the fault lets it. Raises OSError once the connection has ended."""
        await asyncio.sleep(self._fault.delay + len(data) / self._fault.rate)
        while direction in self._fault.holds and not self._ended:
            await self._changed.wait()
        if self._ended:
            raise ConnectionAbortedError
        left = self._fault.after - self._passed
        self._passed += len(data)
        self._to[direction].write(data if left >= len(data) else data[: max(0, int(left))])
        await self._to[direction].drain()
        if left <= len(data):
            self.cut(self._fault.resets)

    def finish(self) -> None:
        """In good order: what was sent arrives."""
        self._ended = True
        for writer in self._to.values():
            writer.close()
        self._wake()

    def cut(self, resets: bool = False) -> None:
        """At once."""
        self._ended = True
        for writer in self._to.values():
            if resets and not writer.transport.is_closing():
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
        self._wake()

    def _wake(self) -> None:
        """Whoever is held looks again."""
        self._changed.set()
        self._changed = asyncio.Event()
