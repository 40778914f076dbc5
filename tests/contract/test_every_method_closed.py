"""Every method of every server, against callers who may not call it."""

import grpc
import pytest
from grpc import aio
from guarded_servers import (
    ENTRIES,
    SERVICES,
    all_but,
    call,
    entry,
    only,
    served,
    wait_until,
    write_tokens,
)

from plaudit.access import SCOPES
from services.rpc import failures, reloading
from services.rpc.interceptors import HEALTH
from services.rpc.scopes import METHODS, OPEN, STANDARD, scope_of

Code = grpc.StatusCode
OWNERS = {
    "plaudit.v1.PolicyService": ["policy"],
    "plaudit.v1.WeightsService": ["policy"],
    "plaudit.v1.ReferenceService": ["reference"],
    "plaudit.v1.RewardService": ["reward"],
    "inference.GRPCInferenceService": ["reward"],
    "plaudit.v1.TrainerService": ["trainer"],
}
EVERY = [
    pytest.param(server, service, method, id=f"{server}-{service}-{method}")
    for service, methods in METHODS.items()
    for server in OWNERS.get(service, SERVICES)
    for method in methods
]
CLOSED = [each for each in EVERY if scope_of(*each.values[1:]) != OPEN]


@pytest.fixture(scope="module")
def registered():
    """(service, method) of what is added to any server while the fixture lives."""
    found = set()
    with pytest.MonkeyPatch.context() as patch:
        server = aio._server.Server
        add = server.add_generic_rpc_handlers

        def remember(self, handlers):
            for each in handlers:
                found.update(tuple(path.strip("/").split("/")) for path in each._method_handlers)
            add(self, handlers)

        patch.setattr(server, "add_generic_rpc_handlers", remember)
        yield found


@pytest.fixture(scope="module")
def channels(registered, tmp_path_factory):
    """A channel to each server; the token "gone" was good until a moment ago."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reloading, "RELOAD_S", 0.01)
        patch.setattr(failures, "BURST", 10_000)
        opened = {}
        servers = []
        write_tokens(tokens, *ENTRIES, entry("gone", *SCOPES, name="revoked"))
        for name, make in SERVICES.items():
            servers.append(served(make, tokens))
            opened[name] = grpc.insecure_channel(servers[-1].__enter__().address)
        for channel in opened.values():
            assert reaches(channel, "gone")
        write_tokens(tokens, *ENTRIES)
        for channel in opened.values():
            wait_until(lambda channel=channel: not reaches(channel, "gone"))
        yield opened
        for channel in opened.values():
            channel.close()
        for server in servers:
            server.__exit__(None, None, None)


def reaches(channel, token):
    return call(channel, "grpc.channelz.v1.Channelz", "GetServers", token)[0] is Code.OK


def test_every_method_of_every_server_has_a_scope(registered, channels):
    without = [f"{service}/{method}" for service, method in registered if scope_of(service, method) is None]
    assert not without, f"add to services/rpc/scopes.py: {without}"


def test_the_table_has_no_method_that_no_server_has(registered, channels):
    assert {(service, method) for service, methods in METHODS.items() for method in methods} == registered


def test_a_scope_is_one_that_tokens_can_have():
    scopes = {scope for methods in METHODS.values() for scope in methods.values()}
    assert scopes - {OPEN} == set(SCOPES)


def test_only_health_is_open():
    assert {service for service, methods in METHODS.items() if OPEN in methods.values()} == {HEALTH}


@pytest.mark.parametrize("token", [None, "unknown", "old", "gone", ""], ids=str)
@pytest.mark.parametrize(("server", "service", "method"), CLOSED)
def test_nobody_passes_without_a_token_that_is_good(channels, server, service, method, token):
    code, words = call(channels[server], service, method, token)
    assert code is Code.UNAUTHENTICATED
    assert "old" not in words and "gone" not in words


@pytest.mark.parametrize(("server", "service", "method"), CLOSED)
def test_a_caller_with_every_scope_but_the_right_one_is_told_which(channels, server, service, method):
    scope = scope_of(service, method)
    code, words = call(channels[server], service, method, all_but(scope))
    assert code is Code.PERMISSION_DENIED
    assert repr(scope) in words


@pytest.mark.parametrize(("server", "service", "method"), CLOSED)
def test_the_right_scope_alone_is_enough(channels, server, service, method):
    code, words = call(channels[server], service, method, only(scope_of(service, method)))
    if service.startswith(STANDARD):
        assert code not in (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)
    else:
        assert (code, words) == (Code.UNAVAILABLE, "the model is loading")


@pytest.mark.parametrize("server", SERVICES)
@pytest.mark.parametrize("token", [None, "unknown", "old", "gone"], ids=str)
def test_health_is_open(channels, server, token):
    assert call(channels[server], HEALTH, "Check", token) == (Code.OK, "")


def test_a_method_without_a_scope_is_closed_to_everybody(channels, monkeypatch):
    monkeypatch.delitem(METHODS["plaudit.v1.TrainerService"], "GetRun")
    for scope in SCOPES:
        code, words = call(channels["trainer"], "plaudit.v1.TrainerService", "GetRun", only(scope))
        assert code is Code.PERMISSION_DENIED
        assert "no scope opens it" in words
    assert call(channels["trainer"], "plaudit.v1.TrainerService", "GetRun")[0] is Code.UNAUTHENTICATED
