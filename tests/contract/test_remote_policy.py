"""The policy over real servers: the same bits from any replica, the same weights on all of them."""

import contextlib
import itertools
import threading

import pytest
import torch
from gateway_server import wait_until
from policy_fleet import (
    CPU,
    SEEDS,
    Pods,
    PolicyServer,
    digest,
    discovered_fleet,
    learn,
    named_fleet,
    remote_policy,
    tiny_prompts,
)

from lm.digests import tensor_bytes
from lm.loading import load_causal_lm
from lm.logprobs import response_logprobs
from plaudit.clients import PolicyClient, PushManifest, TensorSpec, WeightsClient
from plaudit.clients.errors import DataLoss
from trainer.ppo import patience
from trainer.ppo.replica import Replica
from trainer.ppo.roles import RoleUnavailable, StaleWeights


@pytest.fixture
def servers(tiny_policy):
    with contextlib.ExitStack() as stack:

        def start(count, dtype="float32"):
            started = [PolicyServer(tiny_policy, dtype).start() for _ in range(count)]
            for server in started:
                stack.callback(server.stop)
            return started

        yield start


@pytest.fixture
def learner(tiny_policy):
    return load_causal_lm(str(tiny_policy), CPU).model


@pytest.fixture
def connect(learner):
    """RemotePolicy over named servers, or over pods that come and go."""
    with contextlib.ExitStack() as stack:

        def make(servers, **how):
            fleet = discovered_fleet(servers) if isinstance(servers, Pods) else named_fleet(servers)
            stack.callback(fleet.close)
            return remote_policy(fleet, learner, **how)

        yield make


@pytest.fixture
def prompts(tiny_policy):
    return tiny_prompts(tiny_policy)


def test_a_rollout_is_the_same_bits_over_one_replica_and_over_three(servers, connect, prompts):
    one, *three = servers(4)
    alone, spread = connect([one]), connect(three)
    alone.start(0)
    spread.start(0)
    first, second = alone.generate(prompts, SEEDS, 0), spread.generate(prompts, SEEDS, 0)
    assert first == second
    assert [response.seed for response in first] == SEEDS
    assert all(response.version_spans == ((0, 0, len(response.token_ids)),) for response in first)


def test_a_fresh_server_of_the_same_model_needs_no_push(servers, connect):
    policy = connect(servers(2))
    policy.start(0)
    assert policy.bytes_pushed == 0


def test_a_push_reaches_every_replica_with_only_what_changed(servers, connect, learner, prompts):
    replicas = servers(2)
    policy = connect(replicas)
    policy.start(0)
    before = policy.generate(prompts, SEEDS, 0)
    changed = learn(learner)
    policy.push(changed, 1)
    models = [replica.model() for replica in replicas]
    assert [(m.step, m.run_id, m.weights_sha256) for m in models] == [(1, "r", digest(learner))] * 2
    assert policy.bytes_pushed == 2 * 4 * sum(tensor.numel() for _, tensor in changed)
    after = policy.generate(prompts, SEEDS, 1)
    assert [response.token_ids for response in after] != [response.token_ids for response in before]
    flat = response_logprobs(
        learner,
        [p.token_ids + r.token_ids for p, r in zip(prompts, after, strict=True)],
        [len(p.token_ids) for p in prompts],
    )
    assert flat.tolist() == pytest.approx([x for response in after for x in response.logprobs], abs=1e-5)


def test_weights_are_pushed_in_the_type_that_is_served(servers, connect, learner):
    replicas = servers(1, "bfloat16")
    policy = connect(replicas, dtype=torch.bfloat16)
    policy.start(0)
    policy.push(learn(learner), 1)
    assert replicas[0].model().weights_sha256 == digest(learner, torch.bfloat16)


def test_a_run_takes_over_whatever_was_served_and_may_go_back_to_an_earlier_step(servers, connect, learner):
    replicas = servers(2)
    first = connect(replicas, run_id="first")
    first.start(0)
    kept = {name: tensor.clone() for name, tensor in learn(learner)}
    first.push(kept.items(), 7)
    learn(learner)
    second = connect(replicas, run_id="second")
    second.start(3)
    assert {(r.model().run_id, r.model().step) for r in replicas} == {("second", 3)}
    assert {r.model().weights_sha256 for r in replicas} == {digest(learner)}


def test_two_runs_on_one_replica_are_refused_not_mixed(servers, connect, learner, prompts):
    replicas = servers(1)
    first, second = connect(replicas, run_id="first"), connect(replicas, run_id="second")
    first.start(0)
    first.push(learn(learner), 1)
    second.start(0)
    with pytest.raises(StaleWeights, match=r"services\.policy\[0\].*another trainer pushes to it"):
        first.generate(prompts, SEEDS, 1)
    with pytest.raises(StaleWeights, match="another trainer pushes to it"):
        first.push(learn(learner), 2)


def test_the_open_push_of_a_run_that_died_holds_nobody_up(servers, connect, learner, monkeypatch):
    """It died before its first commit: the replica serves what it had, and start pushes nothing."""
    replicas = servers(1)
    dead, living = connect(replicas, run_id="dead"), connect(replicas, run_id="living")
    dead.start(0)
    with monkeypatch.context() as patched:
        patched.setattr(Replica, "commit", died)
        with pytest.raises(SystemExit):
            dead.push(learn(learner), 1)
    living.start(0)
    living.push(learn(learner), 1)
    model = replicas[0].model()
    assert (model.run_id, model.step, model.weights_sha256) == ("living", 1, digest(learner))


def died(*_):
    raise SystemExit("killed")


def test_a_run_that_is_taken_over_in_mid_push_says_by_whom(servers, connect, learner, monkeypatch):
    replicas = servers(1)
    first, second = connect(replicas, run_id="first"), connect(replicas, run_id="second")
    first.start(0)
    first.push(learn(learner), 1)
    commit = Replica.commit

    def commit_late(replica, push_id):
        monkeypatch.undo()
        second.start(5)
        commit(replica, push_id)

    monkeypatch.setattr(Replica, "commit", commit_late)
    with pytest.raises(StaleWeights, match=r"serves step 5 of run 'second': another trainer pushes to it"):
        first.push(learn(learner), 2)
    assert (replicas[0].model().run_id, replicas[0].model().step) == ("second", 5)


@pytest.mark.parametrize(("damaged", "step"), [({0}, 2), ({0, 2}, 1)])
def test_a_push_that_is_damaged_on_the_way_is_sent_once_more(
    servers, connect, learner, monkeypatch, damaged, step
):
    """Calls 0 and 2 of tensor_bytes are the first tensor, first and second time."""
    replicas = servers(1)
    policy = connect(replicas)
    policy.start(0)
    policy.push(learn(learner), 1)
    calls = itertools.count()

    def bytes_on_the_way(tensor):
        data = bytearray(tensor_bytes(tensor))
        data[0] ^= next(calls) in damaged
        return memoryview(data)

    monkeypatch.setattr("trainer.ppo.replica.tensor_bytes", bytes_on_the_way)
    with contextlib.nullcontext() if step == 2 else pytest.raises(DataLoss):
        policy.push(learn(learner), 2)
    assert replicas[0].model().step == step
    assert (replicas[0].model().weights_sha256 == digest(learner)) is (step == 2)


@pytest.mark.parametrize("method", ["version", "stage", "commit", "generate"])
def test_a_replica_that_hangs_is_waited_for_while_it_does(
    servers, connect, learner, prompts, monkeypatch, caplog, method
):
    policy = connect(servers(1))
    policy.start(0)
    ask, go_on = getattr(Replica, method), threading.Event()

    def ask_late(*given):
        assert go_on.wait(20)
        return ask(*given)

    def step():
        policy.push(learn(learner), 1)
        policy.generate(prompts, SEEDS, 1)

    monkeypatch.setattr(patience, "SLOW_S", 0.2)
    monkeypatch.setattr(Replica, method, ask_late)
    thread = threading.Thread(target=step)
    thread.start()
    wait_until(lambda: policy._patience.waits_for("policy"))
    assert "(services.policy[0]) has not answered for 0 s" in caplog.text
    go_on.set()
    thread.join(20)
    assert not thread.is_alive() and not policy._patience.waits_for("policy")


def test_a_step_that_was_not_pushed_is_refused_without_asking(servers, connect, prompts):
    policy = connect(servers(1))
    policy.start(0)
    with pytest.raises(StaleWeights, match="step 4 was asked for, but 0 was pushed last"):
        policy.generate(prompts, SEEDS, 4)


@pytest.mark.parametrize("count", [1, 2])
def test_a_replica_restarted_between_steps_gets_its_weights_again(count, servers, connect, learner, prompts):
    replicas = servers(count)
    policy = connect(replicas)
    policy.start(0)
    policy.push(learn(learner), 1)
    expected = policy.generate(prompts, SEEDS, 1)
    replicas[0].stop()
    replicas[0].start()
    assert policy.generate(prompts, SEEDS, 1) == expected
    policy.push(learn(learner), 2)
    assert {r.model().weights_sha256 for r in replicas} == {digest(learner)}


def test_a_replica_restarted_before_a_push_gets_everything(servers, connect, learner):
    replicas = servers(2)
    policy = connect(replicas)
    policy.start(0)
    policy.push(learn(learner), 1)
    replicas[1].stop()
    replicas[1].start()
    policy.push(learn(learner), 2)
    assert {(r.model().step, r.model().weights_sha256) for r in replicas} == {(2, digest(learner))}


def test_chunks_of_a_dead_replica_are_asked_of_another(servers, connect, prompts):
    replicas = servers(2)
    policy = connect(replicas)
    policy.start(0)
    expected = policy.generate(prompts, SEEDS, 0)
    replicas[0].stop()
    assert policy.generate(prompts, SEEDS, 0) == expected


def test_replicas_that_stay_away_are_named_with_address_key_and_time(servers, connect, prompts):
    replicas = servers(1)
    policy = connect(replicas, seconds=0.3)
    policy.start(0)
    replicas[0].stop()
    where = (
        rf"policy at {replicas[0].address} \(services\.policy\[0\]\) has not answered since \d\d:\d\d:\d\d"
    )
    with pytest.raises(RoleUnavailable, match=where):
        policy.generate(prompts, SEEDS, 0)


def test_a_push_to_a_replica_that_stays_away_gives_the_others_up(servers, connect, learner):
    replicas = servers(2)
    policy = connect(replicas, seconds=0.3)
    policy.start(0)
    replicas[1].stop()
    with pytest.raises(RoleUnavailable, match=r"services\.policy\[1\]"):
        policy.push(learn(learner), 1)
    assert replicas[0].model().step == 0
    with WeightsClient(replicas[0].address) as weights, PolicyClient(replicas[0].address) as client:
        version = client.get_policy().model
        spec = [TensorSpec("model.norm.weight", "float32", (32,))]
        manifest = PushManifest("other", version.step, 1, spec, "0" * 64)
        weights.abort(weights.stage(manifest, [bytes(128)]))  # nothing of the failed push is left open


# Replicas that come and go


def test_a_replica_that_appears_gets_the_weights_before_a_prompt(servers, connect, learner, prompts):
    first, second = servers(2)
    pods = Pods(first)
    policy = connect(pods)
    policy.start(0)
    policy.push(learn(learner), 1)
    expected = policy.generate(prompts, SEEDS, 1)
    pods.there = {second.address}  # it alone has to answer
    assert policy.generate(prompts, SEEDS, 1) == expected
    assert (second.model().step, second.model().weights_sha256) == (1, digest(learner))


def test_a_replica_that_missed_a_push_gets_it_when_it_is_back(servers, connect, learner, prompts):
    first, second = servers(2)
    pods = Pods(first, second)
    policy = connect(pods)
    policy.start(0)
    policy.push(learn(learner), 1)
    pods.there = {first.address}
    policy.push(learn(learner), 2)
    assert (first.model().step, second.model().step) == (2, 1)
    pods.there = {first.address, second.address}
    policy.generate(prompts, SEEDS, 2)
    policy.push(learn(learner), 3)
    assert {(each.model().step, each.model().weights_sha256) for each in (first, second)} == {
        (3, digest(learner))
    }


def test_a_replica_that_left_costs_neither_step_nor_push(servers, connect, learner, prompts):
    first, second = servers(2)
    pods = Pods(first, second)
    policy = connect(pods, seconds=0.5)
    policy.start(0)
    expected = policy.generate(prompts, SEEDS, 0)
    second.stop()  # in mid-step: the cluster doesn't know yet
    assert policy.generate(prompts, SEEDS, 0) == expected
    pods.there = {first.address}
    policy.push(learn(learner), 1)
    assert first.model().step == 1


def test_a_replica_that_dies_and_comes_back_elsewhere_is_found(servers, connect, learner, prompts):
    first, second = servers(2)
    pods = Pods(first)
    policy = connect(pods)
    policy.start(0)
    policy.push(learn(learner), 1)
    expected = policy.generate(prompts, SEEDS, 1)
    first.stop()
    asked = []

    def addresses():  # the cluster learns of both after it was asked twice
        asked.append(1)
        return frozenset({first.address} if len(asked) < 3 else {second.address})

    pods.addresses = addresses
    assert policy.generate(prompts, SEEDS, 1) == expected


def test_a_policy_without_any_pod_is_waited_for_and_then_named(servers, connect, prompts):
    (server,) = servers(1)
    pods = Pods(server)
    policy = connect(pods, seconds=0.3)
    policy.start(0)
    pods.there = set()
    where = r"policy at kubernetes:///policy:grpc \(services\.policy\) has not answered since .*no pod"
    with pytest.raises(RoleUnavailable, match=where):
        policy.generate(prompts, SEEDS, 0)
    with pytest.raises(RoleUnavailable, match=where):
        policy.start(0)


def test_a_pod_that_another_trainer_pushed_to_is_refused(servers, connect, learner, prompts):
    first, second = servers(2)
    other = connect([second], run_id="other")
    other.start(0)
    other.push(learn(learner), 5)
    pods = Pods(first)
    policy = connect(pods)
    policy.start(0)
    pods.there = {second.address}
    with pytest.raises(StaleWeights, match=r"serves step 5 of run 'other': another trainer pushes to it"):
        policy.generate(prompts, SEEDS, 0)
    assert second.model().step == 5


def test_connections_of_pods_are_closed_with_the_fleet(servers):
    pods = Pods(*servers(1))
    fleet = discovered_fleet(pods)
    (replica,) = fleet.replicas()
    assert fleet.replicas() == [replica]
    fleet.close()
    assert pods.closed
