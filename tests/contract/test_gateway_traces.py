"""One request over HTTP is one trace: the gateway's span, its call, and the reward service's part in it."""

import json
import socket

import pytest
from gateway_server import client_of, gateway_in_background, held_reward, http_client, options
from guarded_servers import write_tokens
from opentelemetry.trace import SpanKind, StatusCode
from tracers import assert_chain, spans_by_kind_and_name, spans_in_memory

from services.gateway import middleware
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.options import Security, ServerOptions

CALL = "/plaudit.v1.RewardService/Score"
BODY = {"items": [{"prompt": "the film is", "response": " good"}]}
CALLERS_TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def tracer():
    with spans_in_memory() as exporter:
        yield exporter


@pytest.fixture(scope="module")
def http(tracer, tiny_reward):
    with (
        serve_in_background(lambda: reward_service(options(tiny_reward))) as reward,
        gateway_in_background(reward.address) as gateway,
        http_client(gateway) as client,
    ):
        yield client


@pytest.fixture
def memory(tracer):
    """The spans of one test."""
    tracer.clear()
    return tracer


def test_a_request_is_one_trace_over_gateway_and_reward(http, memory):
    assert http.post("/v1/score", json=BODY).status_code == 200
    found = spans_by_kind_and_name(memory, 3)
    request, call, served = (
        found[SpanKind.SERVER, "POST /v1/score"],
        found[SpanKind.CLIENT, CALL],
        found[SpanKind.SERVER, CALL],
    )
    assert request.parent is None
    assert_chain(request, call, served)
    about = {"http.request.method": "POST", "http.route": "/v1/score", "http.response.status_code": 200}
    assert about.items() <= request.attributes.items()
    assert served.attributes["plaudit.compute_seconds"] > 0


def test_a_callers_own_trace_goes_on(http, memory):
    http.post("/v1/score", json=BODY, headers={"traceparent": CALLERS_TRACE})
    request = spans_by_kind_and_name(memory, 3)[SpanKind.SERVER, "POST /v1/score"]
    _, trace_id, span_id, _ = CALLERS_TRACE.split("-")
    assert (request.context.trace_id, request.parent.span_id) == (int(trace_id, 16), int(span_id, 16))
    assert {each.context.trace_id for each in memory.get_finished_spans()} == {int(trace_id, 16)}


@pytest.mark.parametrize("traceparent", ["", "00-0-0-01", "x" * 9000])
def test_a_trace_that_cannot_be_is_passed_over(http, memory, traceparent):
    assert http.post("/v1/score", json=BODY, headers={"traceparent": traceparent}).status_code == 200
    assert spans_by_kind_and_name(memory, 3)[SpanKind.SERVER, "POST /v1/score"].parent is None


@pytest.mark.parametrize(
    ("method", "path", "name", "status"),
    [
        ("GET", "/nothing/of/the/kind", "GET", 404),
        ("BREW", "/v1/score", "HTTP /v1/score", 405),
        ("POST", "/v1/score", "POST /v1/score", 415),
    ],
)
def test_a_refusal_is_named_by_its_route(http, memory, method, path, name, status):
    assert http.request(method, path).status_code == status
    request = spans_by_kind_and_name(memory, 1)[SpanKind.SERVER, name]
    assert request.attributes["http.response.status_code"] == status
    assert request.status.status_code is StatusCode.UNSET, "the caller's mistake, not the gateway's"


@pytest.mark.parametrize(("method", "name"), [("POST", "POST"), ("BREW", "HTTP")])
def test_who_may_not_ask_is_in_the_callers_trace_as_well(memory, tmp_path, method, name):
    tokens = write_tokens(tmp_path / "tokens.toml")
    asks = ServerOptions(security=Security(tokens=tokens))
    with client_of("127.0.0.1:1", gateway_options=asks) as http:
        headers = {"traceparent": CALLERS_TRACE, "authorization": "Bearer guess"}
        assert http.request(method, "/v1/score", json=BODY, headers=headers).status_code == 401
        assert http.get("/metrics").status_code == 401
    refused = spans_by_kind_and_name(memory, 1)[SpanKind.SERVER, name]
    assert f"{refused.parent.span_id:016x}" == CALLERS_TRACE.split("-")[2]
    assert refused.attributes["http.response.status_code"] == 401
    assert refused.attributes["url.path"] == "/v1/score"
    assert refused.status.status_code is StatusCode.UNSET
    assert 0 < refused.start_time < refused.end_time
    assert "guess" not in str(refused.to_json())


def test_a_body_that_is_too_large_is_one_as_well(http, memory, monkeypatch):
    monkeypatch.setattr(middleware, "MAX_BODY_BYTES", 10)
    assert http.post("/v1/score", json=BODY).status_code == 413
    refused = spans_by_kind_and_name(memory, 1)[SpanKind.SERVER, "POST"]
    assert refused.attributes["http.response.status_code"] == 413


def test_questions_about_the_gateway_are_no_trace(http, memory):
    for path in ("/healthz", "/readyz", "/metrics"):
        assert http.get(path).status_code == 200
    http.get("/openapi.json")
    assert spans_by_kind_and_name(memory, 1).keys() == {(SpanKind.SERVER, "GET /openapi.json")}


def test_a_host_that_cannot_be_decoded_is_answered(http, memory):
    assert http.post("/v1/score", json=BODY, headers={b"host": b"\xff\\x"}).status_code == 200


def test_a_service_that_is_away_marks_the_request(memory):
    with gateway_in_background("127.0.0.1:1") as gateway, http_client(gateway) as http:
        assert http.post("/v1/score", json=BODY).status_code == 503
    request = spans_by_kind_and_name(memory, 2)[SpanKind.SERVER, "POST /v1/score"]
    assert request.attributes["http.response.status_code"] == 503
    assert request.status.status_code is StatusCode.ERROR


def test_a_caller_that_hangs_up_ends_its_spans(memory, tiny_reward):
    body = json.dumps(BODY).encode()
    head = b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with held_reward(tiny_reward) as reward, gateway_in_background(reward.address) as gateway:
        host, _, port = gateway.address.partition(":")
        with socket.create_connection((host, int(port))) as caller:
            caller.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            assert reward.engine.begun.wait(10)
        found = spans_by_kind_and_name(memory, 3)
    request, call = found[SpanKind.SERVER, "POST /v1/score"], found[SpanKind.CLIENT, CALL]
    assert_chain(request, call, found[SpanKind.SERVER, CALL])
    assert request.status.status_code is call.status.status_code is StatusCode.ERROR
