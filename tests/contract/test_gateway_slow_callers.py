"""Who neither sends nor takes holds no connection of the gateway for ever: raw sockets, short limits."""

import socket
import time

import pytest
from gateway_server import gateway_in_background, wait_until

from services.gateway import connection

HEAD = b"GET /healthz HTTP/1.1\r\nhost: gateway\r\n\r\n"
PAGE = b"GET /openapi.json HTTP/1.1\r\nhost: gateway\r\n\r\n"
PATIENCE_S = 20.0
"""Of the tests themselves."""


@pytest.fixture(scope="module")
def gateway():
    """In front of nobody: what is asked here needs no reward service."""
    with gateway_in_background("127.0.0.1:9") as running:
        yield running


@pytest.fixture
def connect(gateway, monkeypatch):
    """A connection to a gateway with these limits, in seconds."""
    opened = []

    def make(head=60.0, unread=60.0):
        monkeypatch.setattr(connection, "HEAD_S", head)
        monkeypatch.setattr(connection, "UNREAD_S", unread)
        host, _, port = gateway.address.rpartition(":")
        opened.append(socket.create_connection((host, int(port)), PATIENCE_S))
        return opened[-1]

    wait_until(lambda: not gateway._api.server_state.connections)
    yield make
    for each in opened:
        each.close()


def answer(line):
    """The whole of one short answer."""
    found = b""
    while b"\r\n\r\n" not in found or not found.endswith(b"}"):
        piece = line.recv(65536)
        assert piece, "the connection ended"
        found += piece
    return found


def is_ended(line):
    """Whether the other side ends the connection, in whichever way."""
    try:
        return line.recv(65536) == b""
    except ConnectionResetError:
        return True


def test_who_says_nothing_is_cut_off(connect):
    line = connect(head=0.2)
    assert is_ended(line)


@pytest.mark.parametrize("head", [HEAD, b"GET / HTTP/1.1\r\n" + b"x-one: more\r\n" * 4000])
def test_a_head_that_comes_byte_by_byte_is_not_waited_for(connect, head):
    line = connect(head=0.3)
    began, sent = time.monotonic(), 0
    line.settimeout(0.02)
    while time.monotonic() - began < PATIENCE_S:
        try:
            line.send(head[sent : sent + 1])
            sent += 1
            assert line.recv(1) == b""
            break
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            break
    else:
        pytest.fail("it was waited for")
    assert sent < len(head)


def test_a_head_in_parts_that_is_whole_in_time_is_answered(connect):
    line = connect()
    for piece in (HEAD[:5], HEAD[5:20], HEAD[20:]):
        line.sendall(piece)
        time.sleep(0.02)
    assert answer(line).startswith(b"HTTP/1.1 200")


def test_the_limit_is_of_each_request_of_a_connection(connect, monkeypatch):
    line = connect()
    line.sendall(HEAD)
    assert answer(line).startswith(b"HTTP/1.1 200")
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    line.sendall(HEAD)  # in time: the limit before it is gone
    assert answer(line).startswith(b"HTTP/1.1 200")
    line.sendall(HEAD[:9])
    assert is_ended(line)


def test_between_two_requests_the_limit_of_a_head_does_not_hold(connect):
    line = connect(head=0.6)
    line.sendall(HEAD)
    answer(line)
    time.sleep(0.8)
    line.sendall(HEAD)
    assert answer(line).startswith(b"HTTP/1.1 200")


def test_answers_that_nobody_takes_are_given_up(gateway, connect):
    line = connect(unread=0.2)
    wait_until(lambda: gateway._api.server_state.connections)  # or "none" below could be before it
    asked = 400  # 13 MB: more than sockets hold
    line.sendall(PAGE * asked)
    wait_until(lambda: not gateway._api.server_state.connections, 60)
    found = b""
    try:
        while piece := line.recv(1 << 20):
            found += piece
    except ConnectionResetError:
        pass
    assert found.count(b"HTTP/1.1 200") < asked


def test_answers_that_are_taken_slowly_come_whole(connect):
    line = connect(unread=5.0)
    asked, found = 60, b""
    line.sendall(PAGE * asked)
    while found.count(b"HTTP/1.1 200") < asked:
        piece = line.recv(1 << 18)
        assert piece
        found += piece
        time.sleep(0.002)
