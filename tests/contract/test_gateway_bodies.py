"""The bodies of all the gateway's callers together: what is held of them, and for how long."""

import contextlib
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor as threads

import pytest
from gateway_server import gateway_in_background, held_reward, http_client, wait_until

from services.gateway import body_room, middleware

NOWHERE = "127.0.0.1:1"
SCORE = json.dumps({"items": [{"prompt": "the film is", "response": " good"}]}).encode()
JSON = {"content-type": "application/json"}
ROOM = 1 << 20
LARGE = 450_000


@pytest.fixture(autouse=True)
def room(monkeypatch):
    monkeypatch.setattr(body_room, "ROOM_BYTES", ROOM)


@pytest.fixture
def gateway():
    """In front of nobody: what is served ends as 503."""
    with gateway_in_background(NOWHERE) as running:
        yield running


@pytest.fixture
def begin(gateway):
    """begin(bytes) → a connection on which so much of a body was sent, and a byte is kept back."""
    with contextlib.ExitStack() as opened:

        def make(size, announced=None, headers=""):
            host, _, port = gateway.address.rpartition(":")
            line = opened.enter_context(socket.create_connection((host, int(port)), 20))
            head = f"POST /v1/score HTTP/1.1\r\nhost: x\r\nx-timeout-seconds: 600\r\n{headers}"
            head += f"content-length: {announced or size + 1}\r\n\r\n"
            line.sendall(head.encode() + b" " * size)
            return line

        yield make


def post(http, size):
    return http.post("/v1/score", content=SCORE.ljust(size), headers=JSON)


def held(gateway):
    """Bytes, in whichever of the applications around each other counts them."""
    app = gateway._api.config.loaded_app.app
    while not hasattr(app, "_room"):
        app = app._app
    return app._room._held


def test_slow_callers_of_large_bodies_leave_room_to_small_ones(gateway, begin):
    lines = [begin(LARGE) for _ in range(20)]
    with http_client(gateway) as http:
        wait_until(lambda: post(http, LARGE).status_code == 429)
        refused = post(http, LARGE)
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["code"] == "RESOURCE_EXHAUSTED"
        assert refused.json()["retry_after_seconds"] == 1
        assert post(http, 1000).status_code == 503
        assert held(gateway) <= ROOM
        for line in lines:
            line.close()
        wait_until(lambda: held(gateway) == 0)
        assert post(http, LARGE).status_code == 503


def test_who_is_refused_gives_back_what_it_sent(gateway, begin):
    lines = [begin(LARGE) for _ in range(20)]
    with contextlib.ExitStack() as waiting:
        answered = 0
        for line in lines:
            waiting.enter_context(line)
            line.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                assert line.recv(65536).startswith(b"HTTP/1.1 429 ")
                answered += 1
        assert answered >= 15
        assert held(gateway) <= (20 - answered) * LARGE


def test_what_is_announced_takes_no_room(gateway, begin):
    for _ in range(20):
        begin(10, announced=LARGE)
    with http_client(gateway) as http:
        wait_until(lambda: held(gateway) == 200)
        assert post(http, LARGE).status_code == 503


def test_chunks_are_counted_as_they_come(gateway):
    with http_client(gateway) as http:
        answer = http.post("/v1/score", content=(b" " * 10_000 for _ in range(60)), headers=JSON)
        assert answer.status_code == 429
        wait_until(lambda: held(gateway) == 0)


def test_a_body_is_held_until_its_request_is_answered(tiny_reward):
    with (
        held_reward(tiny_reward) as reward,
        gateway_in_background(reward.address) as gateway,
        http_client(gateway) as http,
        threads() as pool,
    ):
        first = pool.submit(post, http, LARGE)
        assert reward.engine.begun.wait(10)
        assert held(gateway) == LARGE
        assert post(http, LARGE).status_code == 429
        reward.engine.go_on.set()
        assert first.result().status_code == 200
        wait_until(lambda: held(gateway) == 0)
        assert post(http, LARGE).status_code == 200


def test_a_body_is_whole_in_time_however_long_its_answer_is_of_use(gateway, begin, monkeypatch):
    monkeypatch.setattr(middleware, "BODY_S", 0.3)
    began, line = time.monotonic(), begin(1000)
    answer = line.recv(65536)
    while b"}" not in answer:
        answer += line.recv(65536)
    assert 0.3 <= time.monotonic() - began < 10
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"DEADLINE_EXCEEDED"' in answer
    assert b"didn't arrive in time" in answer
    wait_until(lambda: held(gateway) == 0)


def test_the_largest_body_finds_room_and_hundreds_of_small_ones_beside_it(monkeypatch):
    monkeypatch.undo()
    room = body_room.BodyRoom()
    with contextlib.ExitStack() as bodies:
        bodies.enter_context(room.body())(middleware.MAX_BODY_BYTES)
        for _ in range(500):
            bodies.enter_context(room.body())(20_000)
