"""Clients and the trainer's roles over a line that fails: every call ends, and answers are the same.

PLAUDIT_FAULTS=7 draws the faults of a step from another seed than 0.
"""

import contextlib
import os
import time

import pytest
import torch
from chaos_proxy import BLACK_HOLE, NONE, ChaosProxy, Fault
from fault_schedule import line_faults, scenes
from policy_fleet import (
    CPU,
    SEEDS,
    PolicyServer,
    learn,
    model_options,
    named_fleet,
    remote_policy,
    tiny_prompts,
)

from lm.loading import load_causal_lm
from plaudit import (
    AsyncRewardClient,
    DeadlineExceeded,
    ReferenceClient,
    RewardClient,
    Unavailable,
    Unreachable,
)
from plaudit.clients import channel
from services.reference.service import reference_service
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from trainer.ppo.patience import Endpoint, Patience
from trainer.ppo.remote import RemoteReference, RemoteReward
from trainer.ppo.roles import RoleUnavailable
from trainer.ppo.rollout import Response, Rollout

SEED = os.environ.get("PLAUDIT_FAULTS", "0")
ITEMS = [("the film is", " good"), ("a dull", " story")]
SOON = 0.3
"""Seconds of a deadline that is to pass."""


@pytest.fixture(scope="module")
def reward_server(tiny_reward):
    with serve_in_background(lambda: reward_service(model_options(tiny_reward))) as server:
        yield server


@pytest.fixture(scope="module")
def reference_server(tiny_policy):
    with serve_in_background(lambda: reference_service(model_options(tiny_policy))) as server:
        yield server


@pytest.fixture(scope="module")
def policy_server(tiny_policy):
    server = PolicyServer(tiny_policy).start()
    yield server
    server.stop()


@pytest.fixture
def proxy(reward_server):
    with ChaosProxy(reward_server.address) as proxy:
        yield proxy


@pytest.fixture
def client(proxy, connect):
    return connect(RewardClient, AsyncRewardClient, proxy.address, timeout=20)


@pytest.fixture(scope="module")
def undisturbed(reward_server):
    with RewardClient(reward_server.address) as client:
        return rewards(client)


def rewards(client, **options):
    return [result.reward for result in client.score(ITEMS, deterministic=True, **options)]


@contextlib.contextmanager
def ends_within(seconds):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


# --- a call ---


@pytest.mark.parametrize("fault", [Fault(delay=0.02), Fault(rate=20_000)], ids=["delay", "throttle"])
def test_a_slow_line_changes_nothing(proxy, client, undisturbed, fault):
    proxy.suffer(fault)
    assert rewards(client) == undisturbed


@pytest.mark.parametrize("resets", [False, True], ids=["cut", "reset"])
@pytest.mark.parametrize("after", [0, 24, 100, 250, 400])
def test_a_connection_that_ends_anywhere_is_tried_again(proxy, client, undisturbed, after, resets):
    """In its settings, in the request, in the answer: the call is idempotent."""
    proxy.script([Fault(after=after, resets=resets)])
    assert rewards(client) == undisturbed
    assert proxy.connections == 2


def test_connections_that_always_end_are_given_up(proxy, client):
    proxy.suffer(Fault(after=250, resets=True))
    with ends_within(10), pytest.raises(Unavailable):
        client.score(ITEMS)
    assert proxy.connections <= 8
    proxy.suffer(NONE)
    assert len(client.score(ITEMS)) == 2


def test_a_black_hole_ends_with_the_deadline(proxy, client, undisturbed):
    assert rewards(client) == undisturbed
    proxy.suffer(BLACK_HOLE)
    with ends_within(SOON + 2), pytest.raises(DeadlineExceeded):
        client.score(ITEMS, timeout=SOON)
    proxy.suffer(NONE)
    assert rewards(client) == undisturbed


@pytest.mark.parametrize("direction", ["requests", "answers"])
def test_one_direction_is_enough_of_a_hole(proxy, client, direction):
    client.get_model()
    proxy.suffer(Fault(holds=frozenset({direction})))
    with ends_within(SOON + 2), pytest.raises(DeadlineExceeded):
        client.score(ITEMS, timeout=SOON)


def test_a_hole_from_the_start_is_a_service_that_was_not_reached(proxy, client):
    proxy.suffer(BLACK_HOLE)
    with ends_within(SOON + 2), pytest.raises(Unreachable):
        client.score(ITEMS, timeout=SOON)


def test_keepalive_finds_a_dead_peer_and_the_call_goes_on_elsewhere(proxy, connect, undisturbed, monkeypatch):
    patient = channel.channel_options

    def impatient(*arguments):
        # A few hundredths, not tens of seconds.
        times = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")
        options = dict(patient(*arguments))
        return [*(options | {time: options[time] // 100 for time in times}).items()]

    monkeypatch.setattr(channel, "channel_options", impatient)
    client = connect(RewardClient, AsyncRewardClient, proxy.address, timeout=20)
    assert rewards(client) == undisturbed
    proxy.hang()
    with ends_within(10):
        assert rewards(client) == undisturbed
    assert proxy.connections == 2


def test_a_stream_over_a_line_that_is_cut_again_and_again(proxy, reward_server, undisturbed):
    items = [(f"the film {number}", " good") for number in range(60)]
    with RewardClient(reward_server.address) as client:
        expected = [result.reward for result in client.score_many(items)]
    proxy.script([Fault(after=after) for after in (0, 900, 2_000)])
    with RewardClient(proxy.address, timeout=20) as client:
        found = [result.reward for result in client.score_many(items, window=8)]
    assert found == pytest.approx(expected, abs=1e-5)
    assert proxy.connections == 4


# --- a step ---


class Lines:
    """The roles of a run, each over a line of its own."""

    def __init__(self, reward, reference, policy, folder, run_id, stack):
        self.proxies = [stack.enter_context(ChaosProxy(each.address)) for each in (reward, reference, policy)]
        reward_at, reference_at, _ = (proxy.address for proxy in self.proxies)
        rewards = stack.enter_context(RewardClient(reward_at, timeout=5))
        references = stack.enter_context(ReferenceClient(reference_at, timeout=5))
        info, patience = rewards.get_model(), Patience(20)
        at = Endpoint("reward", reward_at, "services.reward")
        self.reward = RemoteReward(rewards, info, at, patience, info.model.tokenizer_sha256)
        at = Endpoint("reference", reference_at, "services.reference")
        self.reference = RemoteReference(references, references.get_reference(), at, patience, 1.0)
        self.learner = load_causal_lm(str(folder), CPU).model
        fleet = named_fleet([self.proxies[2]])
        stack.callback(fleet.close)
        self.policy = remote_policy(fleet, self.learner, seconds=20, run_id=run_id)

    def step(self, prompts, number):
        """All that the learner gets to see of a step after the push of `number`."""
        self.policy.push(learn(self.learner), step=number)
        responses = self.policy.generate(prompts, SEEDS, step=number)
        rollout = Rollout.of(tuple(prompts), tuple(responses))
        return responses, self.reward.score(rollout).values, self.reference.logprobs(rollout)


@pytest.fixture
def lines(reward_server, reference_server, policy_server, tiny_policy):
    with contextlib.ExitStack() as stack:

        def make(run_id):
            return Lines(reward_server, reference_server, policy_server, tiny_policy, run_id, stack)

        yield make


def test_steps_over_failing_lines_are_those_over_good_ones(lines, tiny_policy):
    prompts, steps = tiny_prompts(tiny_policy), range(1, 4)
    good, bad = lines("good"), lines("bad")
    good.policy.start(0)
    expected = [good.step(prompts, number) for number in steps]
    bad.policy.start(0)
    for number in steps:
        for index, proxy in enumerate(bad.proxies):
            proxy.cut()
            proxy.script(line_faults(f"{SEED} {number} {index}", 2))
        responses, values, logprobs = bad.step(prompts, number)
        assert (responses, values) == expected[number - 1][:2]
        assert torch.equal(logprobs, expected[number - 1][2])
    assert all(proxy.connections > 3 for proxy in bad.proxies)


def test_a_role_in_a_black_hole_is_given_up_in_time(proxy, reward_server, tiny_policy):
    prompts = tiny_prompts(tiny_policy)[:1]
    with RewardClient(proxy.address, timeout=0.2) as client:
        info = client.get_model(timeout=10)
        at = Endpoint("reward", proxy.address, "services.reward")
        reward = RemoteReward(client, info, at, Patience(0.5), info.model.tokenizer_sha256)
        proxy.suffer(BLACK_HOLE)
        rollout = Rollout.of(tuple(prompts), (Response((5, 6), "", (-1.0, -1.0), False, ((0, 0, 2),), 0),))
        with ends_within(30), pytest.raises(RoleUnavailable, match="has not answered since"):
            reward.score(rollout)


# --- the schedule ---


def test_a_seed_gives_the_same_faults_again():
    assert list(line_faults("7", 50)) == list(line_faults("7", 50))
    assert list(line_faults("7", 50)) != list(line_faults("8", 50))
    assert scenes(7, ("a", "b"), 60) == scenes(7, ("a", "b"), 60) != scenes(8, ("a", "b"), 60)
