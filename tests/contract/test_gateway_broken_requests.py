"""What is no HTTP is told so once, as a problem, and writes no stack into the log: raw sockets."""

import contextlib
import errno
import json
import logging
import socket
import time
from asyncio import selector_events

import pytest
from gateway_server import gateway_in_background, wait_until

from services.gateway import connection

HEAD = b"GET /healthz HTTP/1.1\r\nhost: gateway\r\n\r\n"
CHUNKED = b"%s HTTP/1.1\r\nhost: gateway\r\ntransfer-encoding: chunked\r\nx-request-id: mine\r\n%s\r\n"
SCORE = CHUNKED % (b"POST /v1/score", b"content-type: application/json\r\n")
REFUSED = CHUNKED % (b"POST /v1/score", b"x-timeout-seconds: nan\r\n")
CHUNK, BROKEN = b"3\r\nabc\r\n", b"zz\r\n"


@pytest.fixture(scope="module")
def gateway():
    """In front of nobody: what is asked here needs no reward service."""
    with gateway_in_background("127.0.0.1:9") as running:
        yield running


@pytest.fixture
def line(gateway, caplog):
    """A connection, after whose end the log has no error, nor a stack."""
    caplog.set_level(logging.INFO)
    host, _, port = gateway.address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as opened:
        yield opened
    wait_until(lambda: not gateway._api.server_state.connections | gateway._api.server_state.tasks)
    logged = caplog.get_records("call")
    assert not [each for each in logged if each.exc_info or each.levelno > logging.WARNING]


def until_its_end(line):
    found = b""
    while piece := line.recv(65536):
        found += piece
    return found


def problem(answer):
    """The only answer's, its id that of its head."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"content-type: application/problem+json" in head
    found = json.loads(body)
    assert f"x-request-id: {found['request_id']}".encode() in head
    assert (found["status"], found["code"]) == (400, "INVALID_ARGUMENT")
    return found


def test_a_body_that_breaks_after_its_answer_ends_the_connection(line):
    line.sendall(REFUSED + CHUNK)
    answer = b""
    while not answer.endswith(b"}"):
        answer += line.recv(65536)
    assert problem(answer)["violations"][0]["field"] == "x-timeout-seconds"
    line.sendall(BROKEN)
    assert until_its_end(line) == b""


@pytest.mark.parametrize("head", [SCORE, REFUSED, CHUNKED % (b"GET /healthz", b"")])
def test_a_body_that_breaks_before_its_answer_has_one(head, line, caplog):
    line.sendall(head + CHUNK + BROKEN)
    found = problem(until_its_end(line))
    assert found["request_id"] == "mine" and "HTTP/1.1" in found["detail"]
    assert "broken request 400" in caplog.messages


def test_a_body_that_breaks_while_it_is_waited_for_has_an_answer(line, gateway):
    line.sendall(SCORE + CHUNK)
    wait_until(lambda: gateway._api.server_state.tasks)
    line.sendall(BROKEN)
    assert problem(until_its_end(line))["request_id"] == "mine"


def test_the_answer_to_head_has_no_body(line):
    line.sendall(CHUNKED % (b"HEAD /healthz", b"") + BROKEN)
    head, _, body = until_its_end(line).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400") and body == b""


@pytest.mark.parametrize("head", [b"\x16\x03\x01\r\n\r\n", b"GET /\0 HTTP/1.1\r\n\r\n", b"x" * 100_000])
def test_a_broken_head_is_a_problem(head, line):
    line.sendall(head)
    assert len(problem(until_its_end(line))["request_id"]) == 32


def test_what_comes_behind_a_broken_head_costs_nobody_the_answer(line):
    """Megabytes that were on their way: a connection that is closed over them is reset."""
    line.sendall(b"x" * 100_000)
    time.sleep(0.05)
    line.sendall(b"y" * 100_000)
    problem(until_its_end(line))


def test_nor_is_it_read_for_long(line, gateway, monkeypatch):
    monkeypatch.setattr(connection, "LINGER_S", 0.1)
    line.sendall(b"GET /\0 HTTP/1.1\r\n\r\n")
    problem(until_its_end(line))
    wait_until(lambda: not gateway._api.server_state.connections)


def test_who_breaks_off_just_then_leaves_no_fault(line, monkeypatch):
    """Between the answer and the end of its half of the connection, which the kernel then refuses."""

    def is_gone(transport):
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(selector_events._SelectorSocketTransport, "write_eof", is_gone)
    line.sendall(HEAD + b"zz\r\n\r\n")
    with contextlib.suppress(ConnectionResetError):
        until_its_end(line)


def test_a_broken_head_behind_a_good_request_comes_second(line):
    line.sendall(HEAD + b"zz\r\n\r\n")
    first, _, second = until_its_end(line).partition(b"}")
    assert first.startswith(b"HTTP/1.1 200")
    problem(second)
