"""A name that has no address yet, as that of a headless Service while none of its pods is ready."""

import asyncio
import contextlib
import socket
import threading
import time

import pytest
from scripted_servers import SCORED

from plaudit import AsyncRewardClient, RewardClient, Unavailable
from plaudit.clients import channel, tls

NAME = "reward.plaudit.test"
PAIR = [("the film", " is good")]
A = 1
"""The type of a question for IPv4 addresses."""


class Names:
    """A DNS server that knows no name, or that NAME is this machine; counts what it is asked."""

    def __init__(self):
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.knows, self.asked = False, 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while (received := self._socket.recvfrom(4096))[0]:  # empty once it is shut
            query, peer = received
            self._socket.sendto(self._answer(query), peer)

    def _answer(self, query):
        """RFC 1035, section 4."""
        end = query.index(0, 12) + 5
        asked, kind = query[12:end], query[end - 3]
        self.asked += kind == A
        address = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x01\x00\x04" + socket.inet_aton("127.0.0.1")
        found = address if self.knows and kind == A else b""
        flags = b"\x81\x80" if self.knows else b"\x81\x83"
        return query[:2] + flags + b"\x00\x01" + bytes([0, bool(found)]) + bytes(4) + asked + found

    def close(self):
        with contextlib.suppress(OSError):  # it has no peer, which it needn't have to be shut
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._socket.close()


@pytest.fixture
def names(monkeypatch):
    monkeypatch.setattr(tls, "RENEW_S", 0.05)
    monkeypatch.setattr(channel, "is_loopback", lambda _: True)
    found = Names()
    yield found
    found.close()


@pytest.fixture
def address(names, serve_reward, monkeypatch):
    """Of a server behind NAME."""
    port = serve_reward(SCORED).address.rpartition(":")[2]
    monkeypatch.setattr(channel, "target_of", lambda _: f"dns://127.0.0.1:{names.port}/{NAME}:{port}")
    return f"{NAME}:{port}"


def in_vain(names):
    """True as long as a name isn't asked for eight times, which gRPC alone does in 40 s."""
    end = time.monotonic() + 20
    while names.asked < 8:
        assert time.monotonic() < end, f"asked {names.asked} times"
        yield


def test_a_name_that_appears_is_seen_soon(names, address):
    with RewardClient(address, timeout=5) as client:
        for _ in in_vain(names):
            with pytest.raises(Unavailable):
                client.score(PAIR)
        names.knows = True
        time.sleep(tls.RENEW_S)
        with contextlib.suppress(Unavailable):  # by which the channel is found to be of no use
            client.score(PAIR)
        assert client.score(PAIR)


async def test_nor_do_async_clients_wait_for_it(names, address):
    async with AsyncRewardClient(address, timeout=5) as client:
        for _ in in_vain(names):
            with pytest.raises(Unavailable):
                await client.score(PAIR)
        names.knows = True
        await asyncio.sleep(tls.RENEW_S)
        with contextlib.suppress(Unavailable):
            await client.score(PAIR)
        assert await client.score(PAIR)


def test_a_channel_is_opened_anew_only_so_often(names, address, monkeypatch):
    monkeypatch.setattr(tls, "RENEW_S", 60.0)
    with RewardClient(address, timeout=5) as client:
        with pytest.raises(Unavailable):
            client.score(PAIR)
        renewed = client._channels
        with pytest.raises(Unavailable):
            client.score(PAIR)
        assert client._channels == renewed
