"""Tokens in files are rotated while calls go on: nothing is restarted, and no call fails."""

import threading
from contextlib import contextmanager

import grpc
import pytest
from gateway_server import client_of
from guarded_servers import call, entry, served, trainer_service, wait_until, write_tokens

from plaudit import TrainerClient
from plaudit.clients import token as client_token
from services.gateway import upstream
from services.rpc import reloading
from services.rpc.options import Security, ServerOptions

TRAINER = "plaudit.v1.TrainerService"
Code = grpc.StatusCode


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Files are looked at all the time."""
    monkeypatch.setattr(reloading, "RELOAD_S", 0.005)
    monkeypatch.setattr(client_token, "CHECK_S", 0.0)


def write(file, *tokens):
    """As Kubernetes does it: whole, and at once."""
    new = file.with_suffix(".new")
    new.write_text("".join(f"{token}\n" for token in tokens))
    new.replace(file)


@contextmanager
def calling(client):
    """Calls without a pause while the block runs, and raises what one of them did.

    What it gives returns when a call that began since then has ended well.
    """
    over, failed, made = threading.Event(), [], []

    def run():
        try:
            while not over.is_set():
                client.get_run()
                made.append(None)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def wait_for_a_new_call():
        enough = len(made) + 2
        wait_until(lambda: len(made) >= enough or failed)

    try:
        yield wait_for_a_new_call
    finally:
        over.set()
        thread.join()
    assert not failed


def passes(channel, token):
    return call(channel, TRAINER, "GetRun", token)[0] is Code.OK


@contextmanager
def steady(server, file):
    """A channel to ask with, while a caller with the token file calls and calls, and how to wait for it."""
    with (
        TrainerClient(server.address, token_file=file) as client,
        grpc.insecure_channel(server.address) as channel,
        calling(client) as wait_for_a_new_call,
    ):
        yield channel, wait_for_a_new_call


def test_a_file_that_servers_and_callers_share(tmp_path):
    file = tmp_path / "token"
    write(file, "old")
    with served(trainer_service, token_file=file) as server, steady(server, file) as (channel, called):
        assert passes(channel, "old") and not passes(channel, "new")
        write(file, "old", "new")
        wait_until(lambda: passes(channel, "new"))
        write(file, "new", "old")
        called()
        write(file, "new")
        wait_until(lambda: not passes(channel, "old"))
        assert passes(channel, "new")


def test_a_file_of_the_callers_own(tmp_path):
    file = tmp_path / "token"
    write(file, "old")
    old, new = entry("old", "trainer:read"), entry("new", "trainer:read")
    tokens = write_tokens(tmp_path / "tokens.toml", old)
    with served(trainer_service, tokens) as server, steady(server, file) as (channel, called):
        write(tokens, old, new)
        wait_until(lambda: passes(channel, "new"))
        write(file, "new")
        called()
        write(tokens, new)
        wait_until(lambda: not passes(channel, "old"))


def ask(http, **headers):
    body = {"items": [{"prompt": "a", "response": "b"}]}
    return http.post("/v1/score", json=body, headers={"x-timeout-seconds": "0.1", **headers})


def test_the_gateway_shows_the_newest_of_its_own(tmp_path, monkeypatch):
    heard, real = [], upstream.OnBehalf.metadata
    monkeypatch.setattr(upstream.OnBehalf, "metadata", lambda self: heard.append(real(self)) or heard[-1])
    file = tmp_path / "token"
    write(file, "old")
    tokens = write_tokens(tmp_path / "tokens.toml", entry("alice", "score", name="alice"))
    asks = ServerOptions(token_file=file, security=Security(tokens=tokens))
    with client_of("127.0.0.1:1", gateway_options=asks) as http:
        for token in ("old", "new"):
            write(file, token)
            assert ask(http, authorization="Bearer alice").status_code in (503, 504), "nobody is there"
            assert ("authorization", f"Bearer {token}") in heard[-1]
            refused = ask(http, authorization=f"Bearer {token}")
            assert refused.status_code == 401, "it opens nothing at the gateway"


def test_the_gateway_that_asks_nobody_shows_none_of_its_own(tmp_path, monkeypatch):
    heard, real = [], upstream.OnBehalf.metadata
    monkeypatch.setattr(upstream.OnBehalf, "metadata", lambda self: heard.append(real(self)) or heard[-1])
    monkeypatch.setenv("PLAUDIT_TOKEN_FILE", "/nowhere")
    with client_of("127.0.0.1:1", gateway_options=ServerOptions(token_file=tmp_path / "token")) as http:
        ask(http)
    assert "authorization" not in dict(heard[-1])
