"""What stands around the gateway's routes: ids, tokens, deadlines, limits, failures, metrics, the end."""

import asyncio
import json
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor as threads

import httpx
import pytest
from free_ports import free_address
from gateway_server import (
    client_of,
    fields,
    gateway_in_background,
    held_reward,
    http_client,
    options,
    wait_until,
)
from prometheus_client.parser import text_string_to_metric_families

from services.batching import WAITING_CALLS, CallLimits
from services.gateway import routes
from services.gateway.server import Gateway
from services.reward import servicer
from services.reward.service import reward_service
from services.rpc import logs
from services.rpc.background import serve_in_background
from services.rpc.options import OptionError, ServerOptions
from services.rpc.server import ServerOptions as RewardOptions

BODY = {"items": [{"prompt": "the film is", "response": " good"}], "deterministic": True}
NOWHERE = "127.0.0.1:1"


@pytest.fixture(scope="module")
def reward(tiny_reward):
    with serve_in_background(lambda: reward_service(options(tiny_reward))) as server:
        yield server.address


@pytest.fixture
def http(reward):
    with client_of(reward) as client:
        yield client


@pytest.fixture
def held(tiny_reward):
    with held_reward(tiny_reward, CallLimits(max_items=1)) as found:
        yield found


@pytest.fixture
def records():
    """(logger, level, message, request id) of every line that was logged."""
    found = []

    class Keep(logging.Handler):
        def emit(self, record):
            found.append((record.name, record.levelname, record.getMessage(), logs.request_id.get()))

    root, keep = logging.getLogger(), Keep()
    level = root.level
    root.setLevel(logging.INFO)
    root.addHandler(keep)
    yield found
    root.removeHandler(keep)
    root.setLevel(level)


def score(http, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return http.post("/v1/score", json=BODY, headers=named)


# ---- who asks ----


def test_a_request_keeps_its_id_from_end_to_end(http, records):
    answer = score(http, x_request_id="mine-1")
    assert answer.headers["x-request-id"] == "mine-1"
    told = {"services.gateway.requests", "services.rpc.calls"}
    wait_until(lambda: told <= {name for name, *_, request_id in records if request_id == "mine-1"})
    refused = http.post("/v1/score", json={"items": []}, headers={"x-request-id": "mine-2"})
    assert refused.json()["request_id"] == refused.headers["x-request-id"] == "mine-2"


@pytest.mark.parametrize("offered", ["", "has spaces", "x" * 200])
def test_an_id_that_is_unfit_for_a_log_is_replaced(http, offered):
    found = score(http, x_request_id=offered).headers["x-request-id"]
    assert len(found) == 32
    assert found != offered


def test_the_caller_is_the_one_who_says_so_or_the_peer(http, monkeypatch):
    seen, real = [], servicer.caller_of
    monkeypatch.setattr(servicer, "caller_of", lambda context: seen.append(real(context)) or seen[-1])
    score(http)
    score(http, x_plaudit_caller="nightly filter")
    score(http, x_forwarded_for="203.0.113.9")
    assert seen == ["127.0.0.1", "nightly filter", "203.0.113.9"], "a proxy on this machine is believed"


@pytest.mark.parametrize("caller", ["é".encode("latin-1"), b"x" * 129])
def test_a_caller_that_grpc_cannot_carry_is_refused(http, caller):
    answer = http.post("/v1/score", json=BODY, headers={b"x-plaudit-caller": caller})
    assert answer.status_code == 400
    assert fields(answer) == ["x-plaudit-caller"]


@pytest.mark.parametrize("host", ["é".encode("latin-1"), b"x" * 129, b"a, b"])
def test_a_proxy_that_says_what_grpc_cannot_carry_harms_nobody(http, host):
    assert http.post("/v1/score", json=BODY, headers={b"x-forwarded-for": host}).status_code == 200


def test_the_longest_headers_that_are_taken_get_through_together(http):
    headers = {
        "authorization": "Bearer " + "x" * 6993,
        "x-plaudit-caller": "y" * 128,
        "x-request-id": "z" * 128,
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    for _ in range(20):  # beyond gRPC's soft limit only some would fail
        assert http.post("/v1/score", json=BODY, headers=headers).status_code == 200
    headers["authorization"] += "x"
    assert fields(http.post("/v1/score", json=BODY, headers=headers)) == ["authorization"]


def test_the_token_is_the_callers_and_never_the_gateways(tiny_reward, monkeypatch):
    monkeypatch.setenv("PLAUDIT_TOKEN", "right")
    server = serve_in_background(lambda: reward_service(options(tiny_reward)), RewardOptions(token="right"))
    with server as running, client_of(running.address) as http:
        for headers in ({}, {"authorization": "Bearer wrong"}):
            answer = score(http, **headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["code"] == "UNAUTHENTICATED"
            assert "Authorization: Bearer TOKEN" in answer.json()["detail"]
        assert score(http, authorization="Bearer right").status_code == 200
        assert http.get("/readyz").status_code == 200, "health needs no token"


# ---- deadlines, and callers that hang up ----


def test_a_deadline_that_passes_is_a_timeout(held):
    with client_of(held.address) as http:
        answer = score(http, x_timeout_seconds="0.2")
    assert answer.status_code == 504
    assert answer.json()["code"] == "DEADLINE_EXCEEDED"
    assert "x-timeout-seconds" in answer.json()["detail"]


@pytest.mark.parametrize("seconds", ["0", "-1", "601", "nan", "inf", "soon"])
def test_a_deadline_that_cannot_be_is_refused(http, seconds):
    answer = score(http, x_timeout_seconds=seconds)
    assert answer.status_code == 400
    assert fields(answer) == ["x-timeout-seconds"]


def test_a_caller_that_hangs_up_leaves_nothing_in_the_queue(held, records):
    with gateway_in_background(held.address) as gateway, http_client(gateway) as http, threads() as pool:
        first = pool.submit(score, http)
        assert held.engine.begun.wait(10)
        connection = raw_request(gateway, json.dumps(BODY).encode())
        wait_until(lambda: held.waiting == 2)
        connection.close()
        wait_until(lambda: held.waiting == 1)
        held.engine.go_on.set()
        assert first.result().status_code == 200
        wait_until(lambda: {each["http_response_status_code"] for each in counted(http)} == {"200", "499"})
    assert any("POST /v1/score 499" in message for *_, message, _ in records)


def test_a_caller_that_hangs_up_within_its_body_is_recorded(reward, records):
    with gateway_in_background(reward) as gateway:
        raw_request(gateway, b"{", promised=100).close()
        wait_until(lambda: any("POST /v1/score 499" in message for *_, message, _ in records))


def raw_request(gateway, body, promised=None, headers=""):
    """A connection on which a request was written."""
    host, port = gateway.address.split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    head = "POST /v1/score HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {promised or len(body)}\r\n{headers}\r\n"
    connection.sendall(head.encode() + body)
    return connection


# ---- limits ----


def test_a_body_that_is_too_large_is_refused(http):
    for content in (b" " * (16 * 1024 * 1024 + 1), (b" " * 65536 for _ in range(260))):
        answer = http.post("/v1/score", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert fields(answer) == ["body"]
    assert score(http).status_code == 200


def test_a_body_that_never_comes_ends_with_its_deadline(reward):
    briefly = "x-timeout-seconds: 0.2\r\n"
    with gateway_in_background(reward) as gateway, raw_request(gateway, b"{", 100, briefly) as connection:
        answer = connection.recv(65536)
        while b"}" not in answer:
            answer += connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"didn't arrive in time" in answer


def test_a_full_queue_is_told_with_when_to_come_back(held):
    with client_of(held.address) as http, threads(8) as pool:
        waiting = [pool.submit(score, http)]
        assert held.engine.begun.wait(10)
        waiting += [pool.submit(score, http) for _ in range(WAITING_CALLS - 1)]
        wait_until(lambda: held.waiting == WAITING_CALLS)
        answer = score(http)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["code"] == "RESOURCE_EXHAUSTED"
        assert 0 < answer.json()["retry_after_seconds"] <= 1
        held.engine.go_on.set()
        assert {each.result().status_code for each in waiting} == {200}


# ---- failures behind and within ----


def test_a_service_that_is_not_there(records):
    with client_of(NOWHERE) as http:
        for answer in (score(http), http.get("/readyz")):
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["code"] == "UNAVAILABLE"
            assert NOWHERE not in answer.text, "what is behind the gateway is the log's to know"
        assert http.get("/healthz").json() == {"status": "alive"}
    assert any(NOWHERE in message for *_, message, _ in records)


def test_of_two_services_one_is_enough(reward):
    with client_of(NOWHERE, reward) as http:
        for _ in range(2):
            assert score(http).status_code == 200
            assert http.get("/readyz").json() == {"status": "ready"}


def test_a_service_that_loads_is_alive_and_not_ready(tiny_reward):
    address, loaded, done = free_address(), threading.Event(), threading.Event()

    def slow_to_load():
        service = reward_service(options(tiny_reward))
        load = service.load

        async def after_a_while():
            assert await asyncio.to_thread(loaded.wait, 30)
            return await load()

        service.load = after_a_while
        return service

    def serve():
        with serve_in_background(slow_to_load, RewardOptions(address)):
            done.wait(30)

    with threads() as pool, client_of(address) as http:
        running = pool.submit(serve)
        try:
            wait_until(lambda: "loading" in http.get("/readyz").text)
            assert http.get("/healthz").status_code == 200
            assert score(http).status_code == 503
            loaded.set()
            wait_until(lambda: http.get("/readyz").status_code == 200)
            assert score(http).status_code == 200
        finally:
            loaded.set()
            done.set()
        running.result()


def test_a_fault_of_the_service_is_an_id_and_no_stack(held):
    held.engine.fails = True
    held.engine.go_on.set()
    with client_of(held.address) as http:
        answer = score(http)
        assert answer.status_code == 500
        assert answer.json()["code"] == "INTERNAL"
        assert "memory" not in answer.text
        held.engine.fails = False
        assert score(http).status_code == 200


def test_a_fault_of_the_gateway_is_logged_under_the_requests_id(http, records, monkeypatch):
    monkeypatch.setattr(routes.convert, "score_response", lambda _: 1 / 0)
    answer = score(http, x_request_id="mine")
    assert answer.status_code == 500
    assert answer.json()["request_id"] == "mine"
    assert answer.headers["x-request-id"] == "mine"
    assert "ZeroDivision" not in answer.text
    expected = ("services.gateway.errors", "ERROR", "unexpected error in POST /v1/score", "mine")
    wait_until(lambda: expected in records)
    monkeypatch.undo()
    assert score(http).status_code == 200


def test_a_path_cannot_write_a_log_line(http, records):
    http.get("/nowhere%0A2026-01-01 ERROR forged")
    wait_until(lambda: any(name == "services.gateway.requests" for name, *_ in records))
    assert not any("\n" in message for *_, message, _ in records)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "NOT_FOUND"),
        ("POST", "/v1/score/", 404, "NOT_FOUND"),
        ("GET", "/v1/score", 405, "INVALID_ARGUMENT"),
    ],
)
def test_what_there_is_not(http, method, path, status, code):
    answer = http.request(method, path)
    assert answer.status_code == answer.json()["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == code
    assert "/docs" in answer.json()["detail"]
    if status == 405:
        assert answer.headers["allow"] == "POST"


BODIES = {
    "no JSON": (b"{items: []}", "application/json", 400, "body"),
    "cut off": (b'{"items": [', "application/json", 400, "body"),
    "empty": (b"", "application/json", 422, "body"),
    "not Unicode": (b'{"items": "\xff"}', "application/json", 400, "body"),
    "as curl says it": (b'{"items": []}', "application/x-www-form-urlencoded", 415, "content-type"),
    "as nothing": (b'{"items": []}', "", 415, "content-type"),
}


@pytest.mark.parametrize(("content", "kind", "status", "field"), BODIES.values(), ids=BODIES)
def test_a_body_that_is_no_json_is_a_problem(http, content, kind, status, field):
    answer = http.post("/v1/score", content=content, headers={"content-type": kind})
    assert answer.status_code == status
    assert fields(answer) == [field]


# ---- how it is described ----


def test_openapi_knows_every_route_and_that_failures_are_problems(http):
    described = http.get("/openapi.json").json()
    assert {"/v1/score", "/v1/rank", "/v1/compare", "/v1/models"} < described["paths"].keys()
    assert {"/rerank", "/v1/rerank", "/get_reward", "/score", "/pooling"} < described["paths"].keys()
    for path, methods in described["paths"].items():
        for operation in methods.values():
            if path not in ("/healthz", "/metrics"):
                failure = operation["responses"]["default"]["content"]
                assert list(failure) == ["application/problem+json"]
                assert "422" not in operation["responses"]
    assert "swagger" in http.get("/docs").text


def test_every_problem_is_as_described(http):
    schema = http.get("/openapi.json").json()["components"]["schemas"]["Problem"]
    problem = http.post("/v1/score", json={"items": []}).json()
    assert set(schema["required"]) <= problem.keys() <= schema["properties"].keys()


# ---- metrics ----


def samples(http, name):
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    return families[name].samples


def counted(http):
    """Labels of the requests to routes of the API."""
    return [
        sample.labels
        for sample in samples(http, "http_server_request_duration_seconds")
        if sample.name.endswith("_count") and sample.labels["http_route"].startswith("/v1")
        for _ in range(int(sample.value))
    ]


def test_requests_are_counted_by_route_and_never_by_path(http):
    score(http)
    http.post("/v1/score", json={})
    http.get("/v1/nowhere-1")
    http.get("/v1/nowhere-2")
    http.request("BREW", "/v1/score")
    wait_until(lambda: len(counted(http)) == 3)
    route = "/v1/score"
    assert counted(http) == [
        {"http_request_method": "POST", "http_route": route, "http_response_status_code": "200"},
        {"http_request_method": "POST", "http_route": route, "http_response_status_code": "422"},
        {"http_request_method": "_OTHER", "http_route": route, "http_response_status_code": "405"},
    ]
    found = samples(http, "http_server_request_duration_seconds")
    unrouted = [s for s in found if s.name.endswith("_count") and s.labels["http_route"] == ""]
    assert [sample.value for sample in unrouted] == [2]
    sizes = {s.labels["http_route"]: s.value for s in samples(http, "http_server_request_body_size_bytes")
             if s.name.endswith("_sum")}  # fmt: skip
    assert sizes["/v1/score"] > len(json.dumps(BODY)) * 0.8


def test_requests_in_flight_are_counted(held):
    with client_of(held.address) as http, threads() as pool:
        waiting = pool.submit(score, http)
        assert held.engine.begun.wait(10)
        (active,) = samples(http, "http_server_active_requests")
        assert active.value == 2, "the scrape is one"
        held.engine.go_on.set()
        assert waiting.result().status_code == 200
        wait_until(lambda: samples(http, "http_server_active_requests")[0].value == 1)


# ---- the beginning and the end ----


def test_what_is_in_flight_ends_and_nothing_new_begins(held):
    with gateway_in_background(held.address) as gateway, http_client(gateway) as http, threads() as pool:
        waiting = pool.submit(score, http)
        assert held.engine.begun.wait(10)
        gateway.call_soon(gateway.ask_to_stop)
        wait_until(lambda: refuses(gateway))
        assert not waiting.done()
        held.engine.go_on.set()
        assert waiting.result().status_code == 200


def refuses(gateway):
    with http_client(gateway) as http:
        try:
            http.get("/healthz")
        except httpx.ConnectError:
            return True
        except httpx.TransportError:  # it was connected while the gateway closed
            return False
    return False


def test_what_outlasts_the_grace_is_cut_off(held):
    briefly = ServerOptions(grace_s=0.5)
    with (
        gateway_in_background(held.address, gateway_options=briefly) as gateway,
        http_client(gateway) as http,
        threads() as pool,
    ):
        waiting = pool.submit(score, http)
        assert held.engine.begun.wait(10)
        gateway.call_soon(gateway.ask_to_stop)
        with pytest.raises(httpx.HTTPError):
            waiting.result().raise_for_status()
    wait_until(lambda: held.waiting <= 1)


@pytest.mark.parametrize(
    ("reward", "change", "words"),
    [
        (["nowhere"], {}, "--reward: address: 'nowhere' is not host:port"),
        ([], {}, "--reward: address: none given"),
        ([NOWHERE], {"address": "0.0.0.0:0"}, "add --insecure"),
        ([NOWHERE], {"address": "here"}, "--address is 'here'; use HOST:PORT"),
        ([NOWHERE], {"log_format": "xml"}, "--log-format is 'xml'"),
        ([NOWHERE], {"grace_s": -1.0}, "--grace is -1.0"),
    ],
)
def test_options_that_cannot_work_are_named(reward, change, words):
    with pytest.raises(OptionError, match=words):
        Gateway(reward, ServerOptions(**change))
