"""One policy for every call: deadlines, tokens, retries that do no harm, turns among addresses."""

import inspect
import math
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from scripted_servers import POLICY, SCORED, refuse, refuse_plainly

import plaudit
from plaudit import InvalidArgument, Overloaded, RewardClient, Unavailable, Unreachable, WeightsClient
from plaudit.clients.channel import IDEMPOTENT, MAX_MESSAGE_BYTES
from plaudit.v1 import policy_pb2, reference_pb2, reward_pb2, trainer_pb2, weights_pb2

Code = grpc.StatusCode
BUSY = refuse(Code.UNAVAILABLE, "draining", pushback_ms=1)


# ---- what goes with a call ----


def test_every_call_has_a_deadline(serve_reward, score):
    server = serve_reward(SCORED)
    score(server.address)
    # gRPC writes what is left of a deadline in three significant figures, rounded up.
    assert 55 < server.heard[0].seconds_left <= 60.1


def test_the_client_sets_the_deadline_and_a_call_may_change_it(serve_reward, score):
    server = serve_reward(SCORED)
    score(server.address, client={"timeout": 500})
    score(server.address, client={"timeout": 500}, timeout=20)
    assert [round(heard.seconds_left, -1) for heard in server.heard] == [500, 20]


@pytest.mark.parametrize("timeout", [0, -1, math.inf, math.nan])
def test_no_call_without_an_end(score, timeout):
    with pytest.raises(InvalidArgument, match="timeout"):
        RewardClient("127.0.0.1:1", timeout=timeout)
    with pytest.raises(InvalidArgument, match="timeout"):
        score("127.0.0.1:1", timeout=timeout)


def test_each_call_has_a_request_id_of_its_own(serve_reward):
    server = serve_reward(SCORED)
    with RewardClient(server.address) as client:
        for _ in range(3):
            client.score([("a", "b")])
    ids = {heard.metadata["x-request-id"] for heard in server.heard}
    assert len(ids) == 3
    assert all(len(request_id) == 32 for request_id in ids)


@pytest.mark.parametrize(
    ("environment", "argument", "sent"),
    [
        (None, None, None),
        ("from-env\n", None, "Bearer from-env"),
        ("from-env", "given", "Bearer given"),
        ("from-env", "", None),
        (None, "given", "Bearer given"),
    ],
)
def test_token(serve_reward, score, monkeypatch, environment, argument, sent):
    monkeypatch.delenv("PLAUDIT_TOKEN", raising=False)
    if environment is not None:
        monkeypatch.setenv("PLAUDIT_TOKEN", environment)
    server = serve_reward(SCORED)
    score(server.address, client={"token": argument})
    assert server.heard[0].metadata.get("authorization") == sent


def test_the_token_is_in_no_repr():
    assert repr(RewardClient("host:1", token="secret", insecure=True)) == "RewardClient(host:1)"


# ---- retries ----


def test_an_idempotent_call_is_tried_again(serve_reward, score):
    server = serve_reward(BUSY, refuse(Code.RESOURCE_EXHAUSTED, "full", pushback_ms=1), SCORED)
    assert score(server.address)[0].reward == 0.5
    assert len(server.heard) == 3
    assert len({heard.metadata["x-request-id"] for heard in server.heard}) == 1


def test_at_most_four_times(serve_reward, score):
    server = serve_reward(BUSY)
    with pytest.raises(Unavailable):
        score(server.address)
    assert len(server.heard) == 4


def test_a_foreign_server_needs_no_details_to_be_tried_again(serve_reward, score):
    server = serve_reward(refuse_plainly(Code.UNAVAILABLE, "starting"), SCORED)
    assert score(server.address)[0].reward == 0.5
    assert len(server.heard) == 2


@pytest.mark.parametrize(
    "code", [Code.INVALID_ARGUMENT, Code.INTERNAL, Code.FAILED_PRECONDITION, Code.ABORTED]
)
def test_what_would_fail_again_is_not_tried_again(serve_reward, score, code):
    server = serve_reward(refuse(code, "no"))
    with pytest.raises(plaudit.PlauditError):
        score(server.address)
    assert len(server.heard) == 1


def test_pushback_is_honoured(serve_reward, score):
    times = []

    def full_then_scored(request, context):
        times.append(time.monotonic())
        if len(times) == 1:
            refuse(Code.RESOURCE_EXHAUSTED, "full", pushback_ms=700)(request, context)
        return SCORED

    score(serve_reward(full_then_scored).address)
    assert 0.65 < times[1] - times[0] < 5, "the backoff would have been 0.1 s"


def test_pushback_may_forbid_retries(serve_reward, score):
    server = serve_reward(refuse(Code.RESOURCE_EXHAUSTED, "full", pushback_ms=-1))
    with pytest.raises(Overloaded):
        score(server.address)
    assert len(server.heard) == 1


def test_the_deadline_holds_for_all_tries_together(serve_reward, score):
    server = serve_reward(refuse(Code.UNAVAILABLE, "draining", pushback_ms=30_000))
    started = time.monotonic()
    with pytest.raises(plaudit.PlauditError):
        score(server.address, timeout=0.5)
    assert time.monotonic() - started < 10
    assert len(server.heard) == 1


def test_retries_have_a_budget(serve_reward):
    """100 tokens, one off per failure, none left to spend below 50: an outage isn't made worse."""
    server = serve_reward(BUSY)
    with RewardClient(server.address) as client:
        for _ in range(30):
            with pytest.raises(Unavailable):
                client.score([("a", "b")])
    assert len(server.heard) < 30 * 4 - 30
    assert len(server.heard) > 50


def test_generate_always_has_seeds_so_it_may_be_sent_again(serve, call):
    server = serve(POLICY, {"Generate": [BUSY, policy_pb2.GenerateResponse()]})
    call("policy", server.address, "generate", ["a", "b"], max_new_tokens=1)
    first, second = (heard.request for heard in server.heard)
    assert first == second
    assert all(prompt.HasField("seed") for prompt in first.prompts)
    assert first.prompts[0].seed != first.prompts[1].seed


def test_only_known_methods_are_idempotent():
    """A new RPC is retried only once somebody says that it may be."""
    modules = [policy_pb2, reference_pb2, reward_pb2, trainer_pb2, weights_pb2]
    services = {s.full_name: s for m in modules for s in m.DESCRIPTOR.services_by_name.values()}
    for name, methods in IDEMPOTENT.items():
        assert set(methods) <= set(services[name].methods_by_name)
    assert "PushChunks" not in IDEMPOTENT["plaudit.v1.WeightsService"]


# ---- addresses ----


@pytest.mark.parametrize(
    "address",
    [
        "",
        "host",
        "host:",
        ":1",
        "host:0",
        "host:65536",
        "host:x",
        "http://host:1",
        "a b:1",
        "::1:5",
        "[::1]",
        [],
    ],
)
def test_addresses_that_cannot_be(address):
    with pytest.raises(InvalidArgument, match="address"):
        RewardClient(address)


def test_no_address_at_all():
    with pytest.raises(InvalidArgument, match="host:port"):
        RewardClient([])


@pytest.mark.parametrize("address", ["localhost:1", "reward.ns.svc:50052", "[::1]:65535", "10.0.0.1:9"])
def test_names_are_resolved_to_all_their_addresses(address):
    assert RewardClient(address).targets == [f"dns:///{address}"]


def test_ipv6(serve_reward, score):
    try:
        server = serve_reward(SCORED, address="[::1]:0")
    except RuntimeError:
        pytest.skip("this machine has no IPv6")
    assert score(server.address)[0].reward == 0.5


def test_calls_take_addresses_in_turn(serve_reward):
    servers = [serve_reward(SCORED), serve_reward(SCORED)]
    with RewardClient([server.address for server in servers]) as client:
        for _ in range(6):
            client.score([("a", "b")])
    assert [len(server.heard) for server in servers] == [3, 3]


def test_what_one_address_cannot_do_another_does(serve_reward, score, unused_address):
    servers = [serve_reward(BUSY), serve_reward(SCORED)]
    addresses = [unused_address, *(server.address for server in servers)]
    assert score(addresses)[0].reward == 0.5


def test_bad_values_are_not_tried_elsewhere(serve_reward, score):
    servers = [serve_reward(refuse(Code.INVALID_ARGUMENT, "no")) for _ in range(2)]
    with pytest.raises(InvalidArgument):
        score([server.address for server in servers])
    assert sum(len(server.heard) for server in servers) == 1


def test_when_no_address_answers_the_last_one_is_named(score, serve_reward, unused_address):
    busy = serve_reward(BUSY)
    with pytest.raises(Unreachable, match=unused_address):
        score([busy.address, unused_address])


def test_weights_go_to_one_replica():
    with pytest.raises(InvalidArgument, match="a client for each replica"):
        WeightsClient(["a:1", "b:1"])


def test_a_proxy_is_not_asked_for_this_machine(serve_reward, score, monkeypatch, unused_address):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://{unused_address}")
    monkeypatch.delenv("no_proxy", raising=False)
    for host in ("127.0.0.1", "localhost"):
        port = serve_reward(SCORED).address.rpartition(":")[2]
        assert score(f"{host}:{port}", timeout=10)[0].reward == 0.5


# ---- connections ----


def test_waits_for_a_service_that_is_not_up_yet(serve_reward, score, unused_address):
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(score, unused_address, client={"wait_for_ready": True}, timeout=30)
        serve_reward(SCORED, address=unused_address)
        assert waiting.result()[0].reward == 0.5


def test_a_client_finds_its_service_again(serve_reward):
    server = serve_reward(SCORED)
    with RewardClient(server.address, wait_for_ready=True) as client:
        client.score([("a", "b")])
        server.stop()
        again = serve_reward(SCORED, address=server.address)
        client.score([("a", "b")], timeout=30)
    assert len(again.heard) == 1


def test_a_new_client_does_not_wait_as_an_older_one_does(serve_reward, score, unused_address):
    """gRPC would share the older one's connection, which looks again only after seconds."""
    with RewardClient(unused_address) as older:
        deadline = time.monotonic() + 30
        for _ in range(3):
            with pytest.raises(Unreachable):
                older.score([("the film", " is good")], timeout=deadline - time.monotonic())
        serve_reward(SCORED, address=unused_address)
        assert score(unused_address)[0].reward == 0.5


def test_one_client_in_many_threads(serve_reward):
    server = serve_reward(SCORED)
    with RewardClient(server.address) as client, ThreadPoolExecutor(8) as pool:
        scores = list(pool.map(lambda _: client.score([("a", "b")])[0].reward, range(64)))
    assert scores == [0.5] * 64
    assert len(server.heard) == 64


def test_closing_ends_calls_in_flight(serve_reward):
    server = serve_reward(lambda request, context: server.hang(request, context))
    client = RewardClient(server.address)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(client.score, [("a", "b")], timeout=60)
        assert server.busy.wait(30)
        client.close()
        with pytest.raises(plaudit.PlauditError):
            pending.result(timeout=30)


def test_messages_that_no_server_takes_are_not_sent(serve_reward, score, call):
    server = serve_reward(SCORED)
    with pytest.raises(InvalidArgument, match="at most 67,108,864"):
        call("reward", server.address, "score", [("a", "b" * MAX_MESSAGE_BYTES)])
    assert server.heard == []


def test_a_server_with_smaller_messages_is_not_a_full_queue(serve_reward, call):
    server = serve_reward(SCORED, options=[("grpc.max_receive_message_length", 1000)])
    with pytest.raises(InvalidArgument, match="ask for less in one call"):
        call("reward", server.address, "score", [("a", "b" * 2000)])


# ---- sync and async ----


@pytest.mark.parametrize("name", ["Policy", "Weights", "Reference", "Reward", "Trainer"])
def test_sync_and_async_clients_have_the_same_methods(name):
    blocking, awaited = (
        {
            method: inspect.signature(value)
            for method, value in vars(getattr(plaudit, f"{prefix}{name}Client")).items()
            if not method.startswith("_")
        }
        for prefix in ("", "Async")
    )
    assert _without_streams(blocking) == _without_streams(awaited)
    assert list(blocking) == list(awaited)


def _without_streams(signatures):
    """A stream's items and results are async ones there; its options are the same."""
    streams = ("score_many", "watch_run", "watch_version")
    return {
        method: list(signature.parameters) if method in streams else signature
        for method, signature in signatures.items()
    }
