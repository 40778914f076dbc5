"""Bodies of every route of the gateway: a problem that says what is wrong, never a fault of ours."""

import json
import socket
from contextlib import suppress

import httpx
import pytest
from fuzz_settings import fuzzed
from gateway_server import gateway_in_background
from hostile_json import SCALARS, mangled
from hypothesis import given, strategies as st
from measured_memory import bounded_memory

OPTIONS = {"model": "", "truncation": "left"}
PROMPT, RESPONSE = "the film is", " good"
TURNS = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE}]
RERANK = [
    {"query": PROMPT, "documents": [RESPONSE, {"text": RESPONSE}], "top_n": 1, "return_documents": True},
    {"query": PROMPT, "texts": [RESPONSE], "truncate": True, "raw_scores": False},
]
GOOD = {
    "/v1/score": [
        {"items": [{"prompt": PROMPT, "response": RESPONSE}, {"messages": TURNS}], **OPTIONS},
        {"items": [{"token_ids": [5, 6, 7]}], "tokenizer_sha256": "", "all_or_nothing": False},
    ],
    "/v1/rank": [
        {"prompt": PROMPT, "candidates": [RESPONSE, RESPONSE], "top_n": 1, **OPTIONS},
        {"messages": TURNS[:1], "candidates": [RESPONSE], "all_or_nothing": True, "priority": "low"},
    ],
    "/v1/compare": [{"prompt": PROMPT, "first": RESPONSE, "second": RESPONSE, "temperature": 0.5}],
    "/rerank": RERANK,
    "/v1/rerank": RERANK,
    "/v2/rerank": RERANK,
    "/get_reward": [{"query": [PROMPT + RESPONSE], "prompts": [PROMPT], "labels": [TURNS[:1]]}],
    "/score": [
        {"text_1": PROMPT, "text_2": [RESPONSE], "use_activation": False, "truncate_prompt_tokens": -1},
        {"queries": [PROMPT], "documents": [RESPONSE], "truncation_side": "left"},
    ],
    "/pooling": [{"messages": TURNS, "task": "classify", "encoding_format": "float"}],
}
KEYS = sorted({key for bodies in GOOD.values() for body in bodies for key in body})
REFUSED = {400, 404, 409, 413, 415, 422, 429}
"""As docs/http.md has them."""
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def http(services):
    with (
        gateway_in_background(services.addresses["reward"]) as gateway,
        httpx.Client(base_url=f"http://{gateway.address}", timeout=20) as client,
    ):
        yield client


def check(http, path, body, headers=JSON, **how):
    with bounded_memory(len(body)):
        answer = http.post(path, content=body, headers=headers, **how)
    if answer.status_code != 200:
        assert answer.status_code in REFUSED, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"]
    json.loads(answer.text, parse_constant=pytest.fail)  # NaN is no JSON
    good = http.post("/v1/score", json={"items": [{"prompt": PROMPT, "response": RESPONSE}]})
    assert "reward" in good.json()["results"][0], good.text


def test_every_route_with_a_body_is_fuzzed(http):
    paths = http.get("/openapi.json").json()["paths"]
    assert GOOD.keys() == {path for path, methods in paths.items() if "post" in methods}


@pytest.mark.parametrize("path", GOOD)
def test_a_good_body_is_answered(path, http):
    for body in GOOD[path]:
        assert http.post(path, json=body).status_code == 200 or "tokenizer_sha256" in body


@pytest.mark.parametrize("path", GOOD)
def test_any_json(path, http):
    @fuzzed
    @given(mangled(GOOD[path], KEYS) | SCALARS)
    def run(body):
        check(http, path, json.dumps(body))

    run()


HOSTILE_TEXTS = {
    "deep list": b"[" * 100_000,
    "deep object": b'{"items":' * 100_000,
    "deep and closed": b'{"items": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep label": b'{"query": ["a"], "prompts": ["a"], "labels": [' + b"[" * 900 + b"]" * 900 + b"]}",
    "huge integer": b'{"items": [{"token_ids": [' + b"9" * 100_000 + b"]}]}",
    "beyond a double": b'{"prompt": "a", "first": "b", "second": "c", "temperature": 1e400}',
    "not UTF-8": b'{"items": [{"prompt": "\xff", "response": "a"}]}',
    "UTF-16": '{"items": []}'.encode("utf-16"),
    "lone surrogate": b'{"items": [{"prompt": "\\ud800", "response": "a"}]}',
    "surrogate as a key": b'{"items": [{"\\udc00": 1, "prompt": "a", "response": "a"}], "\\ud800": 1}',
    "surrogate as a digest": b'{"items": [{"token_ids": [5]}], "tokenizer_sha256": "\\ud800"}',
    "surrogate as a model": b'{"items": [{"token_ids": [5]}], "model": "\\ud800"}',
    "key twice": b'{"items": [], "items": [{"prompt": "a", "response": "b"}]}',
    "NUL": b"\x00",
    "nothing": b"",
    "many items": b'{"items": [' + b'{"prompt":"","response":""},' * 20_000 + b"{}]}",
    "many keys": b"{" + b",".join(b'"k%d": 1' % number for number in range(20_000)) + b"}",
    "long text": json.dumps({"query": "a" * 200_000, "texts": ["b" * 200_000]}).encode(),
}


@pytest.mark.parametrize("path", ["/v1/score", "/get_reward"])
@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_hostile_texts(name, path, http):
    check(http, path, HOSTILE_TEXTS[name])


@fuzzed
@given(
    path=st.sampled_from(sorted(GOOD)),
    body=st.binary(max_size=64),
    kind=st.sampled_from(
        ["application/json", "application/json; charset=utf-16", "text/plain", "x/x+json", ""]
    ),
    encoding=st.sampled_from(["identity", "gzip", "br", "x"]),
)
def test_any_bytes_and_any_word_for_what_they_are(path, body, kind, encoding, http):
    check(http, path, body, {"content-type": kind, "content-encoding": encoding})


HEADERS = [
    "x-timeout-seconds",
    "x-plaudit-caller",
    "x-request-id",
    "authorization",
    "content-length",
    "expect",
]
HEADER_VALUES = [
    "",
    "0",
    "-1",
    "nan",
    "inf",
    "1e400",
    "9" * 5000,
    "a" * 5000,
    "\xff\xfe",
    "100-continue",
    "Bearer x",
]


@fuzzed
@given(
    name=st.sampled_from(HEADERS[:4]),
    value=st.sampled_from(HEADER_VALUES)
    | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
)
def test_any_header(name, value, http):
    body = json.dumps(GOOD["/v1/compare"][0])
    check(http, "/v1/compare", body, {**JSON, name: value.strip().encode("latin-1")})


@fuzzed
@given(
    query=st.dictionaries(st.sampled_from(["model", "truncation", "end_token", "empty_reward", "x"]), SCALARS)
)
def test_any_query(query, http):
    sent = {key: str(value).encode("utf-8", "replace").decode() for key, value in query.items()}
    check(http, "/get_reward", json.dumps(GOOD["/get_reward"][0]), params=sent)


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/score HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n",
        b"POST /v1/score HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\nabc",
        b"POST /v1/score HTTP/9.9\r\n\r\n",
        b"GET /\x00\xff HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=range(9),
)
def test_what_is_no_http_harms_nobody(head, http):
    address = (http.base_url.host, http.base_url.port)
    with suppress(OSError), socket.create_connection(address, 10) as raw:  # it may hang up first
        raw.sendall(head)
        raw.shutdown(socket.SHUT_WR)
        while raw.recv(65536):
            pass
    check(http, "/v1/score", b"{}")


def test_a_body_in_the_smallest_chunks_is_answered(http):
    body = json.dumps(GOOD["/v1/score"][0]).encode()
    answer = http.post("/v1/score", content=(body[at : at + 1] for at in range(len(body))), headers=JSON)
    assert answer.status_code == 200
