"""Every route of the gateway, against callers who may not ask it, and what the others may."""

import logging
import socket

import pytest
from gateway_server import client_of, options, wait_until
from guarded_servers import ENTRIES, all_but, entry, only, served, write_tokens

from plaudit.access import SCOPES
from services.gateway.access import HEALTH, ROUTES
from services.gateway.app import described_app
from services.gateway.metrics import HttpMetrics
from services.reward import servicer
from services.reward.service import reward_service
from services.rpc import failures, reloading
from services.rpc.options import Security, ServerOptions
from services.rpc.scopes import OPEN

NOWHERE = "127.0.0.1:1"


def walk(routes):
    """Those of an application and of the routers in it."""
    for route in routes:
        within = getattr(route, "original_router", None)
        yield from walk(within.routes) if within else [route]


EVERY = [
    (method, route.path)
    for route in walk(described_app(None, HttpMetrics()).routes)
    for method in sorted(route.methods - {"HEAD"})
]
CLOSED = [each for each in EVERY if ROUTES.get(each[1]) != OPEN]
ITEM = {"prompt": "the film is", "response": " good"}
SCORE = {"items": [ITEM]}


def guarded(tokens):
    return ServerOptions(security=Security(tokens=tokens))


def ask(http, method, path, token=None, **how):
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return http.request(method, path, headers=headers, **how)


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    """A gateway whose reward service is away; the token "gone" was good until a moment ago."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    write_tokens(tokens, *ENTRIES, entry("gone", *SCOPES, name="revoked"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reloading, "RELOAD_S", 0.01)
        patch.setattr(failures, "BURST", 10_000)
        with client_of(NOWHERE, gateway_options=guarded(tokens)) as client:
            assert ask(client, "GET", "/metrics", "gone").status_code == 200
            write_tokens(tokens, *ENTRIES)
            wait_until(lambda: ask(client, "GET", "/metrics", "gone").status_code == 401)
            yield client


def test_every_route_has_a_scope_and_every_scope_a_route():
    """A new route is closed until somebody says here who may ask it."""
    assert {path for _, path in EVERY} == ROUTES.keys()
    assert set(ROUTES.values()) <= {OPEN, *SCOPES}
    assert {path for path, scope in ROUTES.items() if scope == OPEN} == HEALTH


@pytest.mark.parametrize(("method", "path"), CLOSED, ids=str)
@pytest.mark.parametrize("token", [None, "unknown", "old", "gone", "é"], ids=str)
def test_whom_nobody_knows_passes_nowhere(http, method, path, token):
    header = {} if token is None else {"authorization": f"Bearer {token}".encode("latin-1")}
    answer = http.request(method, path, json=SCORE, headers=header)
    assert answer.status_code == (400 if token == "é" else 401)
    assert answer.headers["content-type"] == "application/problem+json"
    if token != "é":
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["code"] == "UNAUTHENTICATED"


@pytest.mark.parametrize(("method", "path"), CLOSED, ids=str)
def test_the_scope_is_what_opens(http, method, path):
    scope = ROUTES[path]
    wrong = ask(http, method, path, all_but(scope))
    assert (wrong.status_code, wrong.json()["code"]) == (403, "PERMISSION_DENIED")
    assert f"'{scope}'" in wrong.json()["detail"]
    right = ask(http, method, path, only(scope), **({"json": {}} if method == "POST" else {}))
    assert right.status_code in (200, 422, 503), "what is wrong is the body, or the service is away"


@pytest.mark.parametrize(
    "header", ["Bearer", "Basic b25seTpzY29yZQ==", only("score"), f"Token {only('score')}"]
)
def test_another_way_to_show_a_token_is_none(http, header):
    assert http.get("/v1/models", headers={"authorization": header}).status_code == 401


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "BREW"])
def test_other_methods_of_a_route_are_closed_as_well(http, method):
    for path in ("/v1/score", "/metrics", "/docs"):
        assert ask(http, method, path).status_code == 401
        assert ask(http, method, path, all_but(ROUTES[path])).status_code == 403


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/score/", "/V1/score", "/v1/%73core/x"])
def test_what_is_not_there_is_told_to_those_alone_who_are_known(http, path):
    assert ask(http, "POST", path).status_code == 401
    answer = ask(http, "POST", path, only("score"))
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


def test_a_path_is_known_however_it_is_written(http):
    assert ask(http, "POST", "/v1/%73core", json={}).status_code == 401
    assert ask(http, "POST", "/v1/%73core", only("score"), json={}).status_code == 422


def test_a_route_without_a_scope_is_not_there(http, monkeypatch):
    monkeypatch.delitem(ROUTES, "/v1/score")
    for scope in SCOPES:
        assert ask(http, "POST", "/v1/score", only(scope), json=SCORE).status_code == 404
    assert ask(http, "POST", "/v1/score", json=SCORE).status_code == 401


@pytest.mark.parametrize("token", [None, "unknown", "old", "gone"], ids=str)
def test_health_is_open(http, token):
    assert ask(http, "GET", "/healthz", token).status_code == 200
    assert ask(http, "GET", "/readyz", token).status_code == 503


def test_a_large_body_of_a_stranger_is_not_read(http):
    """It is refused by its head, before anybody looks at how large it is."""
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=10) as raw:
        raw.sendall(b"POST /v1/score HTTP/1.1\r\nhost: here\r\ncontent-length: 1000000000\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 401 ")


def test_a_peer_that_fails_all_the_time_is_told_when_to_come_back(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(failures, "BURST", 3)
    monkeypatch.setattr(failures, "PER_SECOND", 0.01)
    tokens = write_tokens(tmp_path / "tokens.toml", *ENTRIES)
    with client_of(NOWHERE, gateway_options=guarded(tokens)) as http:
        assert ask(http, "GET", "/metrics", only("admin")).status_code == 200
        with caplog.at_level(logging.WARNING, "services.rpc.access"):
            answers = [ask(http, "POST", "/v1/score", f"guess-{number}") for number in range(5)]
        assert [answer.status_code for answer in answers] == [401] * 3 + [429] * 2
        assert 90 < int(answers[-1].headers["retry-after"]) <= 100
        assert answers[-1].json()["code"] == "RESOURCE_EXHAUSTED"
        known = ask(http, "GET", "/metrics", only("admin"))
        assert known.status_code == 200, "it was right before"
        assert 'plaudit_calls_refused_total{reason="failures"} 2.0' in known.text
    lines = [record.getMessage() for record in caplog.records if record.name == "services.rpc.access"]
    assert len(lines) == 3
    assert all(line.startswith("POST /v1/score refused to 127.0.0.1:") for line in lines)
    assert "guess" not in caplog.text


def test_a_token_that_was_good_once_is_told_when_to_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(reloading, "RELOAD_S", 0.005)
    monkeypatch.setattr(failures, "BURST", 3)
    monkeypatch.setattr(failures, "PER_SECOND", 0.01)
    tokens = write_tokens(tmp_path / "tokens.toml", entry("gone", "admin"))
    with client_of(NOWHERE, gateway_options=guarded(tokens)) as http:
        assert ask(http, "GET", "/metrics", "gone").status_code == 200
        write_tokens(tokens)
        wait_until(lambda: ask(http, "GET", "/metrics", "gone").status_code == 401)
        codes = [ask(http, "GET", "/metrics", "gone").status_code for _ in range(4)]
    assert codes == [401] * 2 + [429] * 2


# ---- on whose behalf the reward service is asked ----


@pytest.fixture(scope="module")
def scoring(tiny_reward, tmp_path_factory):
    """A gateway that asks who calls, before a reward service that knows the gateway alone."""
    folder = tmp_path_factory.mktemp("both")
    of_reward = write_tokens(
        folder / "reward.toml", entry("own", "score", name="gateway", speaks_for_others="true")
    )
    of_gateway = write_tokens(
        folder / "gateway.toml",
        entry("alice", "score", name="alice"),
        entry("front", "score", name="front", speaks_for_others="true"),
        entry("seldom", "score", name="seldom", requests_per_second=0.01),
        *(entry(f"few-{path}", "score", name=f"few.{path}", tokens_per_second=0.5) for path in BODIES),
    )
    with (
        served(lambda: reward_service(options(tiny_reward)), of_reward) as reward,
        client_of(
            reward.address, gateway_options=ServerOptions(token="own", security=Security(tokens=of_gateway))
        ) as http,
    ):
        yield http


BODIES = {
    "score": SCORE,
    "rank": {"prompt": "the film is", "candidates": [" good", " bad"]},
    "compare": {"prompt": "the film is", "first": " good", "second": " bad"},
}


def test_the_reward_service_hears_of_the_caller_and_not_of_its_token(scoring, monkeypatch):
    heard, real = [], servicer.caller_of
    monkeypatch.setattr(servicer, "caller_of", lambda context: heard.append(real(context)) or heard[-1])
    for token, told in (
        ("alice", {}),
        ("alice", {"x-plaudit-caller": "nightly"}),
        ("front", {"x-plaudit-caller": "nightly"}),
    ):
        headers = {"authorization": f"Bearer {token}", **told}
        assert scoring.post("/v1/score", json=SCORE, headers=headers).status_code == 200
    assert heard == ["gateway/alice", "gateway/alice", "gateway/front/nightly"]


def test_the_gateways_own_token_opens_nothing_at_its_door(scoring):
    assert ask(scoring, "POST", "/v1/score", "own", json=SCORE).status_code == 401


def test_requests_beyond_the_quota_come_back_later(scoring):
    assert ask(scoring, "POST", "/v1/score", "seldom", json=SCORE).status_code == 200
    answer = ask(scoring, "POST", "/v1/score", "seldom", json=SCORE)
    assert answer.status_code == 429
    assert 90 < int(answer.headers["retry-after"]) <= 100
    assert "quota of 0.01 requests a second" in answer.json()["detail"]


@pytest.mark.parametrize("path", BODIES)
def test_tokens_are_paid_for_once_the_answer_tells_how_many_they_were(scoring, path):
    codes = [
        ask(scoring, "POST", f"/v1/{path}", f"few-{path}", json=BODIES[path]).status_code for _ in range(2)
    ]
    assert codes == [200, 429]
