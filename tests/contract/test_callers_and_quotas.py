"""Callers as the services know them: names, turns, quotas, and streams whose token is revoked."""

import logging
import threading

import grpc
import pytest
from guarded_servers import LONG_AGO, call, entry, served, trainer_service, wait_until, write_tokens
from reward_server import options, pair

from plaudit import (
    Overloaded,
    PermissionDenied,
    PolicyClient,
    ReferenceClient,
    RewardClient,
    TrainerClient,
    Unauthenticated,
)
from plaudit.v1 import (
    policy_pb2,
    policy_pb2_grpc,
    reference_pb2,
    reference_pb2_grpc,
    reward_pb2,
    reward_pb2_grpc,
    types_pb2,
)
from services.policy import queue
from services.policy.service import policy_service
from services.reference import dataplane
from services.reference.service import reference_service
from services.reward import servicer
from services.reward.service import reward_service
from services.room import Room
from services.rpc import failures, reloading
from trainer.board import Board

REWARD, TRAINER = "plaudit.v1.RewardService", "plaudit.v1.TrainerService"
Code = grpc.StatusCode
PAIR = ("the film is", " good")


def refused(server, reason):
    registry = server._service.metrics.registry
    return registry.get_sample_value("plaudit_calls_refused_total", {"reason": reason})


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return write_tokens(
        tmp_path_factory.mktemp("tokens") / "tokens.toml",
        entry("free", "score", "generate", "logprobs", name="free"),
        entry("front", "score", name="front", speaks_for_others="true"),
        entry("seldom", "score", name="seldom", requests_per_second=0.01),
        entry("one", "score", name="one", in_flight=1),
        entry("few", "score", "generate", "logprobs", name="few", tokens_per_second=0.5),
        entry("both", "score", name="both", tokens_per_second=40),
        entry("steady", "score", name="steady", tokens_per_second=4000),
    )


@pytest.fixture(scope="module")
def reward(tokens, tiny_reward):
    with served(lambda: reward_service(options(tiny_reward)), tokens) as server:
        yield server


@pytest.fixture
def names(monkeypatch):
    """The names by which callers take turns, as the servicer hears them."""
    heard, real = [], servicer.caller_of
    monkeypatch.setattr(servicer, "caller_of", lambda context: heard.append(real(context)) or heard[-1])
    return heard


# ---- who calls ----


@pytest.mark.parametrize("told", [None, "a-user", "seldom", "front/a-user"])
def test_turns_go_by_the_name_of_the_token_whatever_names_are_made_up(reward, names, told):
    with RewardClient(reward.address, token="free", caller=told) as client:
        client.score([PAIR])
    assert names == ["free"]


@pytest.mark.parametrize(
    ("told", "name"), [(None, "front"), ("a-user", "front/a-user"), ("free", "front/free")]
)
def test_whom_a_front_end_speaks_for_has_turns_of_its_own(reward, names, told, name):
    with RewardClient(reward.address, token="front", caller=told) as client:
        client.score([PAIR])
    assert names == [name]


def test_a_shared_token_says_nothing_of_who_calls(tiny_reward, names):
    with served(lambda: reward_service(options(tiny_reward)), token="shared") as server:
        for told in ("a-user", None):
            with RewardClient(server.address, token="shared", caller=told) as client:
                client.score([PAIR])
    assert names[0] == "a-user"
    assert names[1].startswith("ipv4:127.0.0.1:")


# ---- quotas ----


def test_requests_beyond_the_quota_come_back_later(reward):
    before = refused(reward, "requests")
    with RewardClient(reward.address, token="seldom", timeout=5) as client:
        client.score([PAIR])
        with pytest.raises(Overloaded, match=r"quota of 0.01 requests a second") as caught:
            client.score([PAIR])
    assert 90 < caught.value.retry_after <= 100
    assert refused(reward, "requests") == before + 1


def test_an_ensembles_members_are_charged_for_together(tokens, tiny_reward, tmp_path):
    """One by one, the second would be refused for what the first had taken, again and again."""
    file = tmp_path / "models.toml"
    names = ["one", "two"]
    entries = [f'[[models]]\nname = "{name}"\npath = "{tiny_reward}"\ndtype = "float32"\n' for name in names]
    file.write_text("".join(entries) + '[[models]]\nname = "both"\nensemble = ["one", "two"]\n')
    with served(lambda: reward_service(options(file)), tokens) as server:
        with RewardClient(server.address, token="free") as client:
            (alone,) = client.score([PAIR], model="one")
        items = [PAIR] * (30 // alone.token_count)
        assert 20 < len(items) * alone.token_count < 40
        with RewardClient(server.address, token="both", timeout=5) as client:
            assert len(client.score(items, model="both").rewards) == len(items)
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
            for _ in range(50):  # soon there is one within a second of the one before, on any machine
                score_once(channel, "both", "both", len(items))
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    assert "quota of 40 tokens a second" in caught.value.details()


def score_once(channel, token, model, count):
    """A call that isn't tried again."""
    request = reward_pb2.ScoreRequest(
        items=[pair(*PAIR)] * count, options=reward_pb2.ScoreOptions(model=model)
    )
    metadata = [("authorization", f"Bearer {token}")]
    return reward_pb2_grpc.RewardServiceStub(channel).Score(request, timeout=20, metadata=metadata)


def test_health_has_no_quota(reward):
    with grpc.insecure_channel(reward.address) as channel:
        for _ in range(3):
            assert call(channel, "grpc.health.v1.Health", "Check", "seldom")[0] is Code.OK


def test_calls_in_flight_are_bounded_and_a_stream_is_one(reward):
    with grpc.insecure_channel(reward.address) as channel:
        over = threading.Event()

        def requests():
            yield reward_pb2.ScoreStreamRequest(items=[streamed("1")])
            over.wait(20)

        stub = reward_pb2_grpc.RewardServiceStub(channel)
        stream = stub.ScoreStream(requests(), metadata=[("authorization", "Bearer one")], timeout=20)
        assert next(stream).results[0].item_id == "1"
        code, words = call(channel, REWARD, "GetModel", "one")
        assert code is Code.RESOURCE_EXHAUSTED and "1 calls in flight" in words
        over.set()
        assert list(stream) == []
        assert call(channel, REWARD, "GetModel", "one")[0] is Code.OK


def streamed(item_id, score_item=None):
    return reward_pb2.StreamItem(item_id=item_id, item=score_item or pair("the film is", " good"))


SERVICES = {
    "reward": (lambda folder: reward_service(options(folder)), "tiny_reward"),
    "policy": (lambda folder: policy_service(options(folder)), "tiny_policy"),
    "reference": (lambda folder: reference_service(options(folder)), "tiny_policy"),
}


def ask_reward(address, **how):
    with RewardClient(address, **how) as client:
        return client.score([PAIR])


def ask_policy(address, **how):
    with PolicyClient(address, **how) as client:
        return client.generate(["the film"], max_new_tokens=2, seeds=[1])


def ask_reference(address, **how):
    with ReferenceClient(address, **how) as client:
        return client.compute_logprobs([[5, 6, 7]], [1])


ASK = {"reward": ask_reward, "policy": ask_policy, "reference": ask_reference}


@pytest.mark.parametrize("name", SERVICES)
def test_tokens_are_charged_by_each_service_once_they_are_known(name, tokens, request):
    """What is larger than a second's worth passes once, and its caller then pays."""
    make, model = SERVICES[name]
    folder = request.getfixturevalue(model)
    with served(lambda: make(folder), tokens) as server:
        ASK[name](server.address, token="few")
        with pytest.raises(Overloaded, match=r"quota of 0.5 tokens a second") as caught:
            ASK[name](server.address, token="few", timeout=3)
        assert caught.value.retry_after > 3
        assert refused(server, "tokens") == 1
        ASK[name](server.address, token="free")


def generate(channel, tokens):
    request = policy_pb2.GenerateRequest(
        prompts=[policy_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=[5]))],
        sampling=policy_pb2.SamplingParams(max_new_tokens=tokens - 1),
    )
    return policy_pb2_grpc.PolicyServiceStub(channel).Generate, request


def logprobs(channel, tokens):
    sequence = reference_pb2.LogprobSequence(token_ids=[5] * tokens, start=1)
    request = reference_pb2.ComputeLogprobsRequest(sequences=[sequence])
    return reference_pb2_grpc.ReferenceServiceStub(channel).ComputeLogprobs, request


@pytest.mark.parametrize(("name", "make"), [("policy", generate), ("reference", logprobs)])
def test_who_is_turned_away_by_a_full_queue_gets_its_tokens_back(
    name, make, tokens, tiny_policy, monkeypatch
):
    """The queue has room for fewer tokens than a call has; its first one would use up the quota."""
    for module in (queue, dataplane):
        monkeypatch.setattr(module, "room_for", lambda limits: Room(8, 8, 1 << 20))

    def ask(count):
        method, request = make(channel, count)
        return method(request, metadata=[("authorization", "Bearer few")], timeout=20)

    with (
        served(lambda: SERVICES[name][0](tiny_policy), tokens) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        for _ in range(2):
            with pytest.raises(grpc.RpcError, match="0 items of 0 tokens wait already") as caught:
                ask(12)
            assert caught.value.code() is Code.RESOURCE_EXHAUSTED
        ask(4)
        with pytest.raises(grpc.RpcError, match=r"quota of 0.5 tokens a second"):
            ask(4)


def test_a_stream_over_its_quota_waits_and_loses_nothing(reward):
    before = refused(reward, "tokens")
    long = (PAIR[0], " good" * 50)
    with RewardClient(reward.address, token="steady", timeout=30) as client:
        results = list(client.score_many([long] * 100))
    assert len(results) == 100
    assert refused(reward, "tokens") > before


# ---- a token that is revoked, and peers that fail ----


@pytest.fixture
def changing(tmp_path, monkeypatch):
    """A light server, its tokens file, which is looked at all the time, and its board."""
    board = Board("a-run")
    board.tell(state="running")
    monkeypatch.setattr(reloading, "RELOAD_S", 0.005)
    file = write_tokens(tmp_path / "tokens.toml", entry("watch", "trainer:read"), entry("keep", "admin"))
    with served(lambda: trainer_service(board), file) as server:
        yield server, file, board


def test_a_stream_whose_token_is_revoked_ends_with_its_next_message(changing):
    server, file, board = changing
    with (
        TrainerClient(server.address, token="watch") as trainer,
        grpc.insecure_channel(server.address) as channel,
    ):
        events = trainer.watch_run()
        assert next(events).run.state == "running"
        write_tokens(file, entry("keep", "admin"))
        wait_until(lambda: call(channel, TRAINER, "GetRun", "watch")[0] is Code.UNAUTHENTICATED)
        board.tell(step=1)
        with pytest.raises(Unauthenticated, match="wrong, or revoked"):
            next(events)


def test_scores_of_a_stream_end_when_its_token_is_revoked(tiny_reward, tmp_path, monkeypatch):
    monkeypatch.setattr(reloading, "RELOAD_S", 0.005)
    file = write_tokens(tmp_path / "tokens.toml", entry("stream", "score"))
    gone = threading.Event()

    def requests():
        yield reward_pb2.ScoreStreamRequest(items=[streamed("1")])
        gone.wait(20)
        yield reward_pb2.ScoreStreamRequest(items=[streamed("2")])

    with (
        served(lambda: reward_service(options(tiny_reward)), file) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        stream = stub.ScoreStream(requests(), metadata=[("authorization", "Bearer stream")], timeout=20)
        assert next(stream).results[0].item_id == "1"
        write_tokens(file)
        wait_until(lambda: call(channel, REWARD, "GetModel", "stream")[0] is Code.UNAUTHENTICATED)
        gone.set()
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is Code.UNAUTHENTICATED


def test_a_peer_that_fails_all_the_time_is_not_heard_but_a_good_caller_is(changing, monkeypatch, caplog):
    server, *_ = changing
    monkeypatch.setattr(failures, "BURST", 3)
    monkeypatch.setattr(failures, "PER_SECOND", 0.01)
    with grpc.insecure_channel(server.address) as channel:
        assert call(channel, TRAINER, "GetRun", "watch")[0] is Code.OK
        codes = [call(channel, TRAINER, "GetRun", f"guess-{number}")[0] for number in range(6)]
        assert codes == [Code.UNAUTHENTICATED] * 3 + [Code.RESOURCE_EXHAUSTED] * 3
        assert refused(server, "failures") == 3
        assert call(channel, TRAINER, "GetRun", "watch")[0] is Code.OK, "it was right before"
        assert call(channel, "grpc.health.v1.Health", "Check")[0] is Code.OK
        lines = [record for record in caplog.records if record.name == "services.rpc.access"]
        assert len(lines) == 3
    assert "guess" not in caplog.text


@pytest.mark.parametrize("gone", ["revoked", "expired"])
def test_a_token_that_was_good_once_is_not_heard_when_it_fails_all_the_time(tmp_path, monkeypatch, gone):
    monkeypatch.setattr(reloading, "RELOAD_S", 0.005)
    monkeypatch.setattr(failures, "BURST", 3)
    monkeypatch.setattr(failures, "PER_SECOND", 0.01)
    stays = entry("stays", "trainer:read", name="bob")
    file = write_tokens(tmp_path / "tokens.toml", entry("gone", "trainer:read"), stays)
    with served(trainer_service, file) as server, grpc.insecure_channel(server.address) as channel:
        for token in ("gone", "stays"):
            assert call(channel, TRAINER, "GetRun", token)[0] is Code.OK
        left = [entry("gone", "trainer:read", expires=LONG_AGO)] if gone == "expired" else []
        write_tokens(file, stays, *left)
        wait_until(lambda: call(channel, TRAINER, "GetRun", "gone")[0] is not Code.OK)
        codes = [call(channel, TRAINER, "GetRun", "gone")[0] for _ in range(5)]
        assert codes == [Code.UNAUTHENTICATED] * 2 + [Code.RESOURCE_EXHAUSTED] * 3
        assert call(channel, TRAINER, "GetRun", "stays")[0] is Code.OK, "it is still right"


def test_a_known_caller_that_asks_for_too_much_holds_up_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(failures, "BURST", 3)
    monkeypatch.setattr(failures, "PER_SECOND", 0.01)
    entries = (entry(name, "trainer:read", name=name) for name in ("alice", "bob"))
    file = write_tokens(tmp_path / "tokens.toml", *entries)
    with served(trainer_service, file) as server, grpc.insecure_channel(server.address) as channel:
        assert call(channel, TRAINER, "GetRun", "alice")[0] is Code.OK
        for _ in range(5):
            assert call(channel, TRAINER, "StopRun", "alice")[0] is Code.PERMISSION_DENIED
        for name in ("alice", "bob"):
            assert call(channel, TRAINER, "GetRun", name)[0] is Code.OK, "bob calls for the first time"


def test_a_known_caller_that_asks_for_too_much_does_not_fill_the_log(changing, monkeypatch, caplog):
    server, *_ = changing
    monkeypatch.setattr(failures, "BURST", 3)
    monkeypatch.setattr(failures, "PER_SECOND", 0.01)
    with (
        caplog.at_level(logging.WARNING, "services.rpc.access"),
        TrainerClient(server.address, token="watch") as trainer,
    ):
        trainer.get_run()
        for _ in range(10):
            with pytest.raises(PermissionDenied, match="needs the scope 'trainer:control'"):
                trainer.stop_run()
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 3
    assert all("(somebody)" in line for line in lines), "the log says who"


def test_an_expired_token_says_whose(tmp_path, caplog):
    file = write_tokens(
        tmp_path / "tokens.toml", entry("old", "trainer:read", name="alice", expires=LONG_AGO)
    )
    with served(trainer_service, file) as server, grpc.insecure_channel(server.address) as channel:
        code, words = call(channel, TRAINER, "GetRun", "old")
    assert code is Code.UNAUTHENTICATED and "'alice' has expired" in words
    assert refused(server, "expired") == 1
