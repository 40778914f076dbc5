"""Callers with JWTs against a server and the gateway: who passes, who doesn't, and what is said of them."""

import logging
import time

import grpc
import pytest
from gateway_server import client_of, options
from guarded_servers import call, entry, served, trainer_service, wait_until, write_tokens
from jwt_issuer import (
    ISSUER,
    changed,
    jwks_server,
    key_set,
    security,
    signed_with_the_public_key,
    signing_key,
    unsigned,
)

from plaudit import TrainerClient, Unauthenticated
from plaudit.access import SCOPES
from services.reward import servicer
from services.reward.service import reward_service
from services.rpc import failures, jwks, reloading
from services.rpc.options import ServerOptions
from services.rpc.scopes import METHODS
from trainer.board import Board

TRAINER = "plaudit.v1.TrainerService"
NOWHERE = "127.0.0.1:1"
Code = grpc.StatusCode
KEY, RSA, OTHER = signing_key(), signing_key("two", "RSA", "RS256"), signing_key("another")
LONG_AGO, LATER = int(time.time()) - 3600, int(time.time()) + 3600
EVERYTHING = " ".join(SCOPES)
BAD = {
    "expired": KEY.sign(scope=EVERYTHING, exp=LONG_AGO),
    "not yet valid": KEY.sign(scope=EVERYTHING, nbf=LATER),
    "wrong audience": KEY.sign(scope=EVERYTHING, aud="else"),
    "wrong issuer": KEY.sign(scope=EVERYTHING, iss="https://else.example"),
    "unknown key": OTHER.sign(scope=EVERYTHING),
    "none": unsigned(scope=EVERYTHING),
    "HS256": signed_with_the_public_key(RSA, scope=EVERYTHING),
    "changed": changed(KEY.sign(scope=""), scope=EVERYTHING),
    "garbage": "a.b.c",
    "no JWT": "garbage",
}


def running_board():
    """Of a run that there is something to tell of."""
    board = Board("a-run")
    board.tell(state="running")
    return board


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A file of callers beside those with JWTs: one whose token has two dots, and a quota of all others."""
    file = write_tokens(
        tmp_path_factory.mktemp("tokens") / "tokens.toml",
        "[default]\nin_flight = 1",
        entry("file.with.dots", "trainer:read", name="alice"),
    )
    return file


@pytest.fixture(scope="module")
def place():
    with jwks_server(KEY, RSA) as server:
        yield server


@pytest.fixture(scope="module")
def server(place, tokens):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failures, "BURST", 10_000)
        board = running_board()
        with served(lambda: trainer_service(board), security=security(place.url, tokens=tokens)) as running:
            yield running


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def refused(server, reason):
    registry = server._service.metrics.registry
    return registry.get_sample_value("plaudit_calls_refused_total", {"reason": reason})


@pytest.mark.parametrize("key", [KEY, RSA], ids=["EC", "RSA"])
def test_a_good_token_opens_what_it_names(channel, key):
    reads = key.sign(scope="openid trainer:read")
    assert call(channel, TRAINER, "GetRun", reads) == (Code.OK, "")
    code, words = call(channel, TRAINER, "StopRun", reads)
    assert code is Code.PERMISSION_DENIED and "'trainer:control'" in words


@pytest.mark.parametrize("service", ["grpc.channelz.v1.Channelz", TRAINER])
@pytest.mark.parametrize("bad", BAD)
def test_any_other_opens_nothing(channel, service, bad, caplog):
    for method in METHODS[service]:
        code, words = call(channel, service, method, BAD[bad])
        assert code is Code.UNAUTHENTICATED
        assert not any(part in words for part in BAD[bad].split(".") if len(part) > 1 and bad != "no JWT")
    lines = [record.getMessage() for record in caplog.records if record.name == "services.rpc.access"]
    assert len(lines) == len(METHODS[service])
    assert not any(part in caplog.text for part in BAD[bad].split(".") if len(part) > 10)


def test_a_token_without_any_of_our_scopes_opens_nothing(channel):
    for named in ({"scope": "openid profile"}, {"scope": None}, {"roles": ["admin"]}):
        assert call(channel, TRAINER, "GetRun", KEY.sign(**named))[0] is Code.PERMISSION_DENIED


def test_tokens_of_the_file_stand_beside_them(channel):
    assert call(channel, TRAINER, "GetRun", "file.with.dots")[0] is Code.OK
    assert call(channel, TRAINER, "StopRun", "file.with.dots")[0] is Code.PERMISSION_DENIED


def test_health_is_open(channel):
    assert call(channel, "grpc.health.v1.Health", "Check", BAD["expired"])[0] is Code.OK


def test_who_is_refused_is_in_the_log_by_name(channel, caplog):
    with caplog.at_level(logging.WARNING, "services.rpc.access"):
        call(channel, TRAINER, "StopRun", KEY.sign(scope="score", sub="carol"))
    assert f"({ISSUER}#carol)" in caplog.text


def test_the_default_quota_is_each_callers_own(server, channel):
    alice, bob = (KEY.sign(scope="trainer:read", sub=name) for name in ("alice", "bob"))
    with TrainerClient(server.address, token=alice) as trainer:
        watching = trainer.watch_run()
        next(watching)
        code, words = call(channel, TRAINER, "GetRun", KEY.sign(scope="trainer:read", sub="alice"))
        assert code is Code.RESOURCE_EXHAUSTED and "1 calls in flight" in words
        assert call(channel, TRAINER, "GetRun", bob)[0] is Code.OK
        assert call(channel, TRAINER, "GetRun", "file.with.dots")[0] is Code.OK, "another alice"
        watching.close()


def test_where_no_issuer_is_named_a_jwt_is_a_token_like_any_other(tokens):
    with served(trainer_service, tokens) as server, grpc.insecure_channel(server.address) as channel:
        code, words = call(channel, TRAINER, "GetRun", KEY.sign(scope=EVERYTHING))
        assert code is Code.UNAUTHENTICATED and "wrong, or revoked" in words
        assert call(channel, TRAINER, "GetRun", "file.with.dots")[0] is Code.OK


def test_keys_that_change_end_a_stream_with_its_next_message(tmp_path, monkeypatch):
    monkeypatch.setattr(reloading, "RELOAD_S", 0.005)
    file, board = tmp_path / "jwks.json", running_board()
    file.write_bytes(key_set(KEY))
    old, new = KEY.sign(scope="trainer:read"), OTHER.sign(scope="trainer:read")
    with (
        served(lambda: trainer_service(board), security=security(file)) as server,
        TrainerClient(server.address, token=old) as trainer,
        grpc.insecure_channel(server.address) as channel,
    ):
        events = trainer.watch_run()
        next(events)
        file.write_bytes(key_set(OTHER))
        wait_until(lambda: call(channel, TRAINER, "GetRun", new)[0] is Code.OK)
        board.tell(step=1)
        with pytest.raises(Unauthenticated, match="by no key of the issuer"):
            next(events)


def test_without_the_issuers_keys_callers_with_jwts_are_told_to_come_back(monkeypatch):
    monkeypatch.setattr(jwks, "LEAST_S", 0.0)
    with (
        jwks_server(KEY) as place,
        served(trainer_service, security=security(place.url), token="shared") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        place.wait_until_asked(1)  # at the start
        place.content = b"down for today"
        wait_until(lambda: call(channel, TRAINER, "GetRun", OTHER.sign())[0] is Code.UNAVAILABLE)
        code, words = call(channel, TRAINER, "GetRun", OTHER.sign(scope=EVERYTHING))
        assert code is Code.UNAVAILABLE and "keys of the tokens' issuer" in words
        assert refused(server, "keys") >= 2
        assert call(channel, TRAINER, "GetRun", "shared")[0] is Code.OK
        assert call(channel, TRAINER, "GetRun")[0] is Code.UNAUTHENTICATED
        registry = server._service.metrics.registry
        assert registry.get_sample_value("plaudit_security_file_good", {"file": "jwks"}) == 0
        place.content = key_set(OTHER)
        assert call(channel, TRAINER, "GetRun", OTHER.sign(scope=EVERYTHING))[0] is Code.OK
        assert registry.get_sample_value("plaudit_security_file_good", {"file": "jwks"}) == 1


# ---- the gateway ----


def ask(http, token, path="/metrics", method="GET", **how):
    return http.request(method, path, headers={"authorization": f"Bearer {token}"}, **how)


@pytest.fixture(scope="module")
def http(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failures, "BURST", 10_000)
        with client_of(NOWHERE, gateway_options=ServerOptions(security=security(place.url))) as client:
            yield client


def test_the_gateway_takes_them_too(http):
    assert ask(http, KEY.sign(scope="admin")).status_code == 200
    wrong = ask(http, KEY.sign(scope="score"))
    assert (wrong.status_code, wrong.json()["code"]) == (403, "PERMISSION_DENIED")
    assert http.get("/healthz").status_code == 200
    assert http.get("/metrics").status_code == 401


@pytest.mark.parametrize("bad", BAD)
def test_any_other_opens_nothing_at_the_gateway(http, bad):
    for method, path in (("GET", "/metrics"), ("POST", "/v1/score"), ("GET", "/v1/nothing")):
        answer = ask(http, BAD[bad], path, method)
        assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHENTICATED")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_the_gateway_without_keys_says_when_to_come_back(tmp_path):
    with jwks_server() as place:
        place.status = 503
        with client_of(NOWHERE, gateway_options=ServerOptions(security=security(place.url))) as http:
            answer = ask(http, KEY.sign(scope="admin"))
    assert (answer.status_code, answer.json()["code"]) == (503, "UNAVAILABLE")
    assert answer.headers["retry-after"] == "1"


def test_the_reward_service_hears_of_the_caller_and_not_of_its_jwt(tiny_reward, tmp_path, monkeypatch):
    heard, real = [], servicer.caller_of
    monkeypatch.setattr(servicer, "caller_of", lambda context: heard.append(real(context)) or heard[-1])
    file = tmp_path / "jwks.json"
    file.write_bytes(key_set(KEY))
    of_reward = write_tokens(
        tmp_path / "tokens.toml", entry("own", "score", name="gateway", speaks_for_others="true")
    )
    body = {"items": [{"prompt": "the film is", "response": " good"}]}
    asks = ServerOptions(token="own", security=security(file))
    with (
        served(lambda: reward_service(options(tiny_reward)), of_reward) as reward,
        client_of(reward.address, gateway_options=asks) as http,
    ):
        answer = ask(http, KEY.sign(scope="score"), "/v1/score", "POST", json=body)
        assert answer.status_code == 200, answer.text
        assert ask(http, "own", "/v1/score", "POST", json=body).status_code == 401
    assert heard == [f"gateway/{ISSUER}#alice"]
