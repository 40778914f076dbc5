"""JWTs: which are good, whose they are, and what becomes of them when keys change or can't be had."""

import asyncio
import base64
import contextlib
import json
import logging
import socket
import threading
import time

import jwt
import pytest
from hypothesis import given, settings, strategies as st
from jwt_issuer import (
    AUDIENCE,
    ISSUER,
    changed,
    jwks_server,
    key_set,
    signed_with_the_public_key,
    signing_key,
    unsigned,
)

from plaudit.access import SCOPES
from services.errors import NotServing
from services.rpc import jwks
from services.rpc.jwks import FetchedKeys, open_keys, parse_keys
from services.rpc.oidc import MOST_CHARACTERS, Issuer
from services.rpc.options import OptionError
from services.rpc.tokens import Refused

EC, RSA = signing_key(), signing_key("two", "RSA", "RS256")
OTHER = signing_key("another")
KINDS = [
    EC,
    RSA,
    signing_key("three", "RSA", "PS384"),
    signing_key("four", "OKP", "EdDSA"),
]
LONG_AGO, LATER = int(time.time()) - 3600, int(time.time()) + 3600


def issuer_of(keys):
    return Issuer(ISSUER, AUDIENCE, keys)


async def ask(issuer, token):
    """Whose it is, as a server asks."""
    learned = await issuer.learn(token)
    assert issuer.identity_of(token) == learned == await issuer.learn(token)
    return learned


@pytest.fixture
def heard():
    """What the metrics hear of the keys."""
    return []


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set(*KINDS))
    return path


@pytest.fixture
def issuer(file, heard):
    return issuer_of(open_keys(str(file), heard.append))


@pytest.fixture
def place():
    with jwks_server(EC) as server:
        yield server


@pytest.fixture
def fetched(place, heard):
    return FetchedKeys(place.url, heard.append)


# ---- which are good ----


@pytest.mark.parametrize("key", KINDS, ids=lambda key: key.algorithm)
async def test_a_good_token_says_who_calls_until_when_and_what_for(issuer, key):
    found = await ask(issuer, key.sign(scope="score openid generate admin.all", exp=LATER))
    assert found.name == "https://issuer.example#alice"
    assert found.scopes == {"score", "generate"}
    assert found.expires.timestamp() == LATER + 30
    assert not found.is_expired


async def test_a_key_that_does_not_say_its_algorithm_is_for_the_usual_one_of_its_kind(file, issuer):
    file.write_bytes(key_set(EC.jwk(alg=None, use=None), RSA.jwk(alg=None)))
    issuer = issuer_of(open_keys(str(file), print))
    for key in (EC, RSA):
        assert (await ask(issuer, key.sign())).name.endswith("#alice")
    with pytest.raises(Refused, match="another algorithm"):
        await issuer.learn(RSA.sign("PS256"))


@pytest.mark.parametrize(
    ("named", "scopes"),
    [
        ({"scope": "score"}, ["score"]),
        ({"scp": "score weights:push"}, ["score", "weights:push"]),
        ({"scp": ["score", "trainer:read", 3, None, ["admin"]]}, ["score", "trainer:read"]),
        ({"scope": "score", "scp": ["generate"]}, ["score", "generate"]),
        ({"scope": "SCORE score,generate admin/x"}, []),
        ({"scope": None}, []),
        ({"scope": {"admin": True}, "scp": 7}, []),
        ({"scp": ["x"] * 1000 + ["admin"]}, []),
        ({"scopes": ["admin"], "roles": "admin"}, []),
    ],
    ids=lambda value: str(value)[:80],
)
async def test_scopes_are_those_of_ours_that_the_token_names(issuer, named, scopes):
    assert (await ask(issuer, EC.sign(**named))).scopes == set(scopes)


BAD = {
    "expired": (EC.sign(exp=LONG_AGO), "has expired"),
    "not yet valid": (EC.sign(nbf=LATER), "isn't valid yet"),
    "issued in the future": (EC.sign(iat=LATER), "isn't valid yet"),
    "for others": (EC.sign(aud=["somebody", "else"]), "for another audience"),
    "of somebody else": (EC.sign(iss="https://issuer.example/"), "of another issuer"),
    "no expiry": (EC.sign(exp=None), "no claim 'exp'"),
    "no issuer": (EC.sign(iss=None), "no claim 'iss'"),
    "no audience": (EC.sign(aud=None), "no claim 'aud'"),
    "no subject": (EC.sign(sub=None), "no claim 'sub'"),
    "empty subject": (EC.sign(sub=""), "'sub' isn't 1 to 255 ASCII"),
    "subject of two lines": (EC.sign(sub="alice\nadmin"), "'sub' isn't 1 to 255 ASCII"),
    "long subject": (EC.sign(sub="a" * 256), "'sub' isn't 1 to 255 ASCII"),
    "expires after the end of time": (EC.sign(exp=1 << 60), "'exp' is no time"),
    "key of nobody": (OTHER.sign(), "by no key of the issuer"),
    "key of another by a known name": (OTHER.sign(header={"kid": "one"}), "signature is wrong"),
    "name of another key": (EC.sign(header={"kid": "two"}), "another algorithm"),
    "no name of a key": (EC.sign(header={"kid": None}), "by no key of the issuer"),
    "none": (unsigned(), "another algorithm"),
    "HS256 with the public key": (signed_with_the_public_key(EC), "another algorithm"),
    "HS256 with the public RSA key": (signed_with_the_public_key(RSA), "another algorithm"),
    "RSA of another kind": (RSA.sign("RS512"), "another algorithm"),
    "changed": (changed(EC.sign(), sub="root"), "signature is wrong"),
    "without its signature": (EC.sign().rpartition(".")[0] + ".", "signature is wrong"),
    "what it can't know": (EC.sign(header={"crit": ["x"], "x": 1}), "no JWT"),
    "garbage": ("a.b.c", "no JWT"),
    "dots": ("..", "no JWT"),
    "not ASCII": ("é.é.é", "no JWT"),
    "deep": ("W1tb" * 1500 + ".e30.e30", "no JWT"),
    "long": ("a" * MOST_CHARACTERS + ".b.c", "more than 8192 characters"),
}


@pytest.mark.parametrize("bad", BAD)
async def test_any_other_is_refused_in_words_that_hold_nothing_of_it(issuer, bad):
    token, words = BAD[bad]
    for ask_again in (issuer.learn, lambda token: asyncio.to_thread(issuer.identity_of, token)):
        with pytest.raises(Refused, match=words) as caught:
            await ask_again(token)
    assert caught.value.reason == ("expired" if bad == "expired" else "unknown")
    assert caught.value.__cause__ is None
    assert not any(part and part in str(caught.value) for part in token.split(".") if len(part) > 1)


async def test_clocks_may_differ_by_half_a_minute(issuer):
    now = int(time.time())
    for token in (EC.sign(exp=now - 20), EC.sign(nbf=now + 20, iat=now + 20)):
        assert not (await ask(issuer, token)).is_expired


async def test_a_token_is_verified_once_and_no_longer_good_when_its_time_is_over(issuer, monkeypatch):
    token = EC.sign(exp=int(time.time()) - 20)
    assert not (await ask(issuer, token)).is_expired
    monkeypatch.setattr(jwt, "decode", lambda *_, **__: pytest.fail("verified twice"))
    found = issuer.identity_of(token)
    monkeypatch.setattr("services.rpc.tokens.datetime", _Later)
    assert found.is_expired


class _Later:
    @staticmethod
    def now(zone):
        from datetime import datetime, timedelta

        return datetime.now(zone) + timedelta(seconds=60)


async def test_of_the_tokens_that_were_good_so_many_are_remembered_and_none_itself(issuer, monkeypatch):
    monkeypatch.setattr("services.rpc.oidc.MOST_KNOWN", 3)
    tokens = [EC.sign(sub=str(number)) for number in range(5)]
    for token in tokens:
        await issuer.learn(token)
    assert len(issuer._known) == 3
    assert not any(token in str(vars(issuer)) for token in tokens)
    assert (await ask(issuer, tokens[0])).name.endswith("#0")


# ---- keys of a file ----


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "isn't JSON"),
        (b"[" * 100_000, "isn't JSON"),
        (b"[]", "no public key"),
        (b'{"keys": 3}', "no public key"),
        (b'{"keys": [3, {}, {"kty": "RSA"}]}', "no public key"),
        (key_set({"kty": "oct", "k": "c2VjcmV0", "kid": "one"}), "no public key"),
        (key_set({"kty": "oct", "k": "c2VjcmV0", "kid": "one", "alg": "HS256"}), "no public key"),
        (key_set(EC.jwk(use="enc")), "no public key"),
        (key_set(EC.jwk(kid=["a", "list"])), "no public key"),
        (key_set(EC.jwk(alg="none")), "no public key"),
        (key_set(EC.jwk(alg=["ES256"])), "no public key"),
        (key_set(EC.jwk(alg="RS256")), "no public key"),
        (key_set(RSA.jwk(n="AQAB")), "no public key"),
        (key_set(EC.jwk(x="AQAB")), "no public key"),
        (key_set(signing_key("weak", "short RSA", "RS256")), "no public key"),
        (key_set({**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(EC.private)), "kid": "one"}), "no public"),
    ],
    ids=range(16),
)
def test_a_file_without_a_key_to_trust_is_an_error_that_shows_none(tmp_path, content, words):
    file = tmp_path / "jwks.json"
    file.write_bytes(content)
    with pytest.raises(OptionError, match=words) as caught:
        open_keys(str(file), print)
    assert str(caught.value).startswith(f"--oidc-jwks {file}")
    assert "c2VjcmV0" not in str(caught.value)


def test_the_first_key_of_a_name_counts_and_a_sole_one_needs_none():
    others = ({"kty": "oct", "k": "eA"}, {"kty": "AKP"}, EC.jwk(alg="none"), 3)
    keys = parse_keys(key_set(*others, EC, OTHER.jwk(kid="one")), "here")
    assert keys.keys() == {"one"} and json.loads(keys["one"].content) == EC.jwk()
    sole = parse_keys(key_set(EC), "here")
    assert sole[None] == sole["one"]


async def test_a_token_without_the_name_of_its_key_is_good_where_there_is_one(tmp_path):
    (tmp_path / "jwks.json").write_bytes(key_set(EC))
    issuer = issuer_of(open_keys(str(tmp_path / "jwks.json"), print))
    assert (await ask(issuer, EC.sign(header={"kid": None}))).name


async def test_a_changed_file_counts_also_for_tokens_that_were_good(file, issuer, heard):
    old, new = EC.sign(), OTHER.sign()
    await issuer.learn(old)
    file.write_bytes(key_set(RSA, OTHER))
    issuer._keys._file.refresh()
    assert (await ask(issuer, new)).name
    with pytest.raises(Refused, match="by no key of the issuer"):
        issuer.identity_of(old)
    file.write_bytes(b"{}")
    issuer._keys._file.refresh()
    assert (await ask(issuer, new)).name, "the last good version stays in use"
    assert heard == [True, False]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.text()
    | st.sampled_from(["RSA", "EC", "OKP", "ES256", "none"]),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from([*EC.jwk(), "n", "e"]) | st.text(), inner)
    ),
    max_leaves=20,
)


@settings(max_examples=100)
@given(st.binary() | JSON.map(lambda keys: json.dumps({"keys": keys}).encode()))
def test_whatever_a_set_holds_is_an_option_error_at_most(content):
    with contextlib.suppress(OptionError):
        parse_keys(content, "here")


GOOD = issuer_of(type("Sole", (), {"of": lambda _, kid: SOLE.get(kid), "are_current": True})())
SOLE = parse_keys(key_set(EC), "here")


@settings(max_examples=30)
@given(st.dictionaries(st.sampled_from(["exp", "nbf", "iat", "iss", "aud", "sub", "scope", "scp"]), JSON))
def test_whatever_a_signed_token_claims_is_refused_at_most(claimed):
    with contextlib.suppress(Refused):
        assert GOOD.identity_of(EC.sign_anything(**claimed)).scopes <= SCOPES.keys()


@settings(max_examples=100)
@given(st.text() | st.binary().map(lambda data: base64.urlsafe_b64encode(data).decode() + ".e30.e30"))
def test_whatever_is_no_token_is_refused(token):
    with pytest.raises(Refused):
        GOOD.identity_of(token)


# ---- keys of a URL ----


async def test_keys_are_fetched_when_the_first_token_comes(place, fetched, heard):
    issuer = issuer_of(fetched)
    every = await asyncio.gather(*(ask(issuer, EC.sign(sub=str(number))) for number in range(20)))
    assert [found.name for found in every] == [f"{ISSUER}#{number}" for number in range(20)]
    assert place.asked == 1 and heard == [True]


async def test_a_new_key_is_fetched_when_a_token_names_it(place, fetched, monkeypatch):
    monkeypatch.setattr(jwks, "LEAST_S", 0.0)
    issuer = issuer_of(fetched)
    old, new = EC.sign(), OTHER.sign()
    await issuer.learn(old)
    place.content = key_set(EC, OTHER)
    assert (await ask(issuer, new)).name
    assert issuer.identity_of(old).name, "its key is still there"
    place.content = key_set(OTHER)
    await fetched.refresh()
    assert issuer.identity_of(new).name
    for again in (issuer.learn, ask_at_once(issuer)):
        with pytest.raises(Refused, match="by no key of the issuer"):
            await again(old)


def ask_at_once(issuer):
    async def ask_it(token):
        return issuer.identity_of(token)

    return ask_it


async def test_whatever_keys_are_named_the_issuer_is_asked_now_and_then_only(place, fetched):
    issuer = issuer_of(fetched)
    for number in range(20):
        with pytest.raises(Refused, match="by no key of the issuer"):
            await issuer.learn(EC.sign(header={"kid": f"guess-{number}"}))
    assert place.asked == 1


async def test_keys_are_fetched_again_by_themselves(place, fetched, monkeypatch):
    monkeypatch.setattr(jwks, "LEAST_S", 0.0)
    monkeypatch.setattr(jwks, "REFRESH_S", 0.001)
    watching = asyncio.create_task(fetched.watch())
    await asyncio.to_thread(place.wait_until_asked, 3)
    watching.cancel()
    assert fetched.are_current


async def test_without_keys_nobody_passes(heard, caplog):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and doesn't listen
        fetched = FetchedKeys(f"http://127.0.0.1:{closed.getsockname()[1]}/keys", heard.append)
        for _ in range(2):
            with pytest.raises(NotServing, match="can't be had now"):
                await issuer_of(fetched).learn(EC.sign())
    assert heard == [False]
    assert [record.levelno for record in caplog.records if record.levelno > logging.INFO] == [logging.ERROR]


async def test_an_issuer_that_hangs_holds_nobody_for_long(place, fetched, monkeypatch, heard):
    monkeypatch.setattr(jwks, "TIMEOUT_S", 0.05)
    place.go_on.clear()
    with pytest.raises(NotServing):
        await issuer_of(fetched).learn(EC.sign())
    assert heard == [False]


async def test_an_issuer_that_sends_byte_by_byte_holds_one_thread(fetched, monkeypatch):
    """It would hold one more for each try, until there were none for what else is done in threads."""
    begun, go_on = [], threading.Event()

    def slow(url):
        begun.append(url)
        assert go_on.wait(30)
        return parse_keys(key_set(EC), url)

    monkeypatch.setattr(jwks, "_download", slow)
    monkeypatch.setattr(jwks, "LEAST_S", 0.0)
    monkeypatch.setattr(jwks, "TIMEOUT_S", 0.01)
    for _ in range(5):
        await fetched.refresh()
    assert not fetched.are_current
    assert len(begun) <= 1
    monkeypatch.setattr(jwks, "TIMEOUT_S", 20.0)
    go_on.set()
    await fetched.refresh()
    assert fetched.are_current


async def test_a_caller_who_hangs_up_does_not_end_the_fetch_of_the_others(place, fetched):
    place.go_on.clear()
    issuer = issuer_of(fetched)
    first, second = (asyncio.create_task(ask(issuer, EC.sign(sub=name))) for name in "ab")
    await asyncio.to_thread(place.wait_until_asked, 1)
    first.cancel()
    place.go_on.set()
    assert (await second).name.endswith("#b")
    assert first.cancelled() and place.asked == 1


async def test_the_last_keys_serve_for_an_hour_while_the_issuer_is_away(place, fetched, monkeypatch, heard):
    monkeypatch.setattr(jwks, "LEAST_S", 0.0)
    issuer = issuer_of(fetched)
    known = EC.sign()
    await issuer.learn(known)
    place.status = 500
    await fetched.refresh()
    assert (await ask(issuer, EC.sign(sub="bob"))).name.endswith("#bob")
    with pytest.raises(NotServing, match="can't be had"):  # it may be a new one
        await issuer.learn(OTHER.sign())
    monkeypatch.setattr(jwks, "MOST_AGE_S", 0.0)
    for again in (issuer.learn, ask_at_once(issuer)):
        with pytest.raises(NotServing, match="can't be had"):
            await again(known)
    assert heard[0] is True and set(heard[1:]) == {False}


@pytest.mark.parametrize("what", ["elsewhere", "too much", "no JSON", "no key", "secret"])
async def test_what_is_no_set_of_keys_leaves_things_as_they_are(place, fetched, monkeypatch, what, caplog):
    monkeypatch.setattr(jwks, "LEAST_S", 0.0)
    issuer = issuer_of(fetched)
    await issuer.learn(EC.sign())
    monkeypatch.setattr(jwks, "MOST_BYTES", 1000)
    if what == "elsewhere":
        with jwks_server(OTHER) as other:
            place.status, place.headers = 302, {"location": other.url}
            await fetched.refresh()
        assert other.asked == 0
    else:
        place.content = {
            "too much": key_set(EC, OTHER) + b" " * 1000,
            "no JSON": b"<html>sign in</html>",
            "no key": b'{"keys": []}',
            "secret": key_set({"kty": "oct", "k": "c2VjcmV0"}),
        }[what]
        await fetched.refresh()
    assert not fetched.are_current
    assert (await ask(issuer, EC.sign(sub="bob"))).name.endswith("#bob")
    assert [record.levelno for record in caplog.records if record.levelno > logging.INFO] == [logging.ERROR]
    assert "c2VjcmV0" not in caplog.text


async def test_a_proxy_is_not_asked_for_what_is_on_this_machine(place, fetched, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    await fetched.refresh()
    assert fetched.are_current
