"""The clients against the real services: plain values go in and come out, and errors name their fields."""

import contextlib
from datetime import timedelta

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lm.digests import WeightsDigest, effective_tensors, tensor_bytes
from lm.loading import load_causal_lm
from lm.placement import choose_placement
from plaudit import (
    AsyncPolicyClient,
    AsyncReferenceClient,
    AsyncRewardClient,
    AsyncTrainerClient,
    AsyncWeightsClient,
    Chat,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PolicyClient,
    PushManifest,
    PushStatus,
    ReferenceClient,
    RewardClient,
    TensorSpec,
    TrainerClient,
    Unauthenticated,
    Unimplemented,
    VersionSpan,
    WeightsClient,
)
from plaudit.v1 import trainer_pb2_grpc
from services.policy.service import policy_service
from services.reference.service import reference_service
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from services.rpc.interceptors import Readiness
from services.rpc.server import ServerOptions, Service
from trainer.board import Board
from trainer.servicer import FULL_NAME, TrainerServicer
from trainer.stopping import StopSignal

CPU = choose_placement("cpu", "float32", 1)


def options(folder):
    return ModelOptions(str(folder), "cpu", "float32", 1)


@pytest.fixture(scope="module")
def addresses(tiny_policy, tiny_reward):
    """Of one running service each."""
    services = {
        "policy": lambda: policy_service(options(tiny_policy)),
        "reference": lambda: reference_service(options(tiny_policy)),
        "reward": lambda: reward_service(options(tiny_reward)),
    }
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(serve_in_background(make)).address for name, make in services.items()
        }


@pytest.fixture
def policy(connect, addresses):
    return connect(PolicyClient, AsyncPolicyClient, addresses["policy"])


@pytest.fixture
def reference(connect, addresses):
    return connect(ReferenceClient, AsyncReferenceClient, addresses["reference"])


@pytest.fixture
def reward(connect, addresses):
    return connect(RewardClient, AsyncRewardClient, addresses["reward"])


def test_generate_and_reference_agree(policy, reference):
    """What the policy says of its tokens is what a frozen copy of it says of them."""
    generation = policy.generate(
        ["the film", [40, 41, 42], Chat([("user", "a dull story")])], max_new_tokens=7, seeds=[1, 2, 3]
    )
    prompts = generation.prompt_token_ids
    assert [s.prompt_index for s in generation.sequences] == [0, 1, 2]
    assert prompts[1] == (40, 41, 42)
    for sequence in generation.sequences:
        count = len(sequence.token_ids)
        assert sequence.logprobs.shape == sequence.logprobs_temperature_1.shape == (count,)
        assert sequence.version_spans == (VersionSpan(0, 0, count),)
        assert sequence.ended == (sequence.finish_reason == "eos")
    values, model = reference.compute_logprobs(
        [prompts[s.prompt_index] + s.token_ids for s in generation.sequences],
        [len(prompts[s.prompt_index]) for s in generation.sequences],
    )
    assert model.weights_sha256 == generation.model.weights_sha256
    for sequence, frozen in zip(generation.sequences, values, strict=True):
        assert frozen.dtype == np.float32
        np.testing.assert_allclose(sequence.logprobs, frozen, atol=1e-5)


def test_seeds_repeat_and_samples_differ(policy):
    first = policy.generate(["the film"], max_new_tokens=9, samples_per_prompt=3, seeds=[5])
    again = policy.generate(["the film"], max_new_tokens=9, samples_per_prompt=3, seeds=[5])
    assert [s.token_ids for s in first.sequences] == [s.token_ids for s in again.sequences]
    assert len({s.token_ids for s in first.sequences}) == 3
    assert {s.seed for s in first.sequences} == {5}


def test_drawn_seeds_come_back(policy):
    drawn = policy.generate(["the film"], max_new_tokens=9)
    seed = drawn.sequences[0].seed
    again = policy.generate(["the film"], max_new_tokens=9, seeds=[seed])
    assert again.sequences[0].token_ids == drawn.sequences[0].token_ids


def test_infos(policy, reference, reward, tiny_policy):
    facts = policy.get_policy()
    assert (facts.dtype, facts.context_length, facts.model.step) == ("float32", 128, 0)
    assert facts.model.model_id == str(tiny_policy)
    assert facts.has_chat_template
    assert "in_place" in facts.swap_modes
    frozen = reference.get_reference()
    assert frozen.model.weights_sha256 == facts.model.weights_sha256
    assert frozen.vocabulary_size == facts.vocabulary_size
    model = reward.get_model()
    assert (model.reward_mean, model.reward_std) == (0.25, 2.0)
    assert model.model.tokenizer_sha256 == facts.model.tokenizer_sha256


@pytest.mark.parametrize(
    ("prompts", "sampling", "field"),
    [
        ([""], {}, "prompts[0]"),
        (["a", [5, 10_000]], {}, "prompts[1].token_ids.ids[1]"),
        (["a"], {"temperature": -1.0}, "sampling.temperature"),
        (["a"], {"max_new_tokens": 5000}, ""),
        ([Chat([("user", "<|end|>")])], {}, "prompts[0].chat.messages[0].content"),
        ([], {}, "prompts"),
    ],
)
def test_what_the_policy_refuses_is_named(policy, prompts, sampling, field):
    with pytest.raises(InvalidArgument) as caught:
        policy.generate(prompts, **{"max_new_tokens": 4, **sampling})
    assert caught.value.violations[0].field.startswith(field)
    assert policy.generate(["a"], max_new_tokens=1).sequences, "it still serves"


def test_steps(policy):
    assert policy.generate(["a"], max_new_tokens=1, step_exactly=0, step_at_least=None).model.step == 0
    with pytest.raises(FailedPrecondition) as caught:
        policy.generate(["a"], max_new_tokens=1, step_at_least=1)
    assert caught.value.preconditions


def test_address_of_another_service(addresses, connect):
    mistaken = connect(RewardClient, AsyncRewardClient, addresses["policy"])
    with pytest.raises(Unimplemented, match="another service"):
        mistaken.score([("a", "b")])


# ---- pushes ----


class Moved:
    """The policy's weights with the last norm moved a little, and the manifest that announces them."""

    def __init__(self, folder):
        self.model = load_causal_lm(str(folder), CPU).model
        self.norm = self.model.get_parameter("model.norm.weight")
        with torch.no_grad():
            self.norm.add_(0.5)
        self.pieces = [tensor_bytes(self.norm.detach())]

    def manifest(self, base_step=0, **changes):
        fields = {
            "run_id": "run",
            "base_step": base_step,
            "new_step": base_step + 1,
            "tensors": [TensorSpec("model.norm.weight", "float32", tuple(self.norm.shape))],
            "weights_sha256": WeightsDigest(effective_tensors(self.model)).hexdigest(),
        }
        return PushManifest(**{**fields, **changes})


@pytest.fixture
def moved(tiny_policy):
    return Moved(tiny_policy)


@pytest.fixture
def pushing(tiny_policy, connect):
    """(policy client, weights client) of a server of their own."""
    with serve_in_background(lambda: policy_service(options(tiny_policy))) as server:
        yield (
            connect(PolicyClient, AsyncPolicyClient, server.address),
            connect(WeightsClient, AsyncWeightsClient, server.address),
        )


def test_push(pushing, moved, tiny_policy):
    policy, weights = pushing
    model = weights.push(moved.manifest(), moved.pieces)
    assert (model.run_id, model.step, model.weights_sha256) == ("run", 1, moved.manifest().weights_sha256)
    assert policy.get_policy().model == model
    (sequence,) = policy.generate(["the film"], max_new_tokens=5, temperature=0.0, step_exactly=1).sequences
    assert sequence.version_spans[0].step == 1
    original = AutoModelForCausalLM.from_pretrained(tiny_policy)
    assert not torch.equal(original.get_parameter("model.norm.weight"), moved.norm)


def test_wrong_digest_leaves_the_old_weights(pushing, moved):
    policy, weights = pushing
    before = policy.get_policy().model
    with pytest.raises(DataLoss):
        weights.push(moved.manifest(weights_sha256="0" * 64), moved.pieces)
    assert policy.get_policy().model == before
    assert weights.push(moved.manifest(), moved.pieces).step == 1, "the next push works"


def test_truncated_and_overlong_pushes(pushing, moved):
    _, weights = pushing
    (data,) = moved.pieces
    for pieces in ([bytes(data)[:-4]], [bytes(data), b"more"]):
        with pytest.raises((InvalidArgument, FailedPrecondition, DataLoss)):
            weights.push(moved.manifest(), pieces)
    assert weights.push(moved.manifest(), moved.pieces).step == 1


def test_one_push_at_a_time_and_abort(pushing, moved):
    policy, weights = pushing
    push_id = weights.stage(moved.manifest(), moved.pieces)
    assert weights.stage(moved.manifest(), moved.pieces) == push_id, "all of it is there already"
    with pytest.raises(FailedPrecondition, match="run 'run' drives this policy"):
        weights.stage(moved.manifest(run_id="other"), moved.pieces)
    assert weights.abort(push_id) == policy.get_policy().model
    with pytest.raises(FailedPrecondition, match="the push was aborted; begin again"):
        weights.commit(push_id)
    assert weights.abort(push_id) == policy.get_policy().model
    with pytest.raises(NotFound):
        weights.abort("who")
    assert weights.commit(weights.stage(moved.manifest(), moved.pieces), mode="drain").step == 1


def test_how_far_a_push_is(pushing, moved):
    _, weights = pushing
    push_id = weights.stage(moved.manifest(), moved.pieces)
    status = weights.get_push(run_id="run", new_step=1)
    assert status == PushStatus(push_id, "open", 128, 128, status.expires_in)
    assert 60 < status.expires_in <= 120
    weights.commit(push_id)
    assert weights.commit(push_id).step == 1
    assert weights.get_push(push_id) == PushStatus(push_id, "committed", 128, 128, 0.0)
    with pytest.raises(NotFound, match="no push 'run, step 2' here"):
        weights.get_push(run_id="run", new_step=2)


def test_a_take_over(pushing, moved):
    policy, weights = pushing
    weights.push(moved.manifest(), moved.pieces)
    again = moved.manifest(base_step=1, run_id="other", new_step=0)
    with pytest.raises(FailedPrecondition, match="run 'run' drives this policy, with step 1"):
        weights.push(again, moved.pieces)
    assert weights.push(again, moved.pieces, take_over=True) == policy.get_policy().model
    assert policy.get_policy().model.run_id == "other"


def test_tensor_that_is_not_there(pushing, moved):
    _, weights = pushing
    unknown = moved.manifest(tensors=[TensorSpec("nowhere", "float32", (1,))])
    with pytest.raises((InvalidArgument, FailedPrecondition), match="nowhere"):
        weights.push(unknown, [bytes(4)])


# ---- trainer and token ----


@pytest.fixture
def board():
    return Board("run-1")


@pytest.fixture
def serve_board(board):
    async def load():
        return ""

    def service():
        servicer = TrainerServicer(board, StopSignal(), Readiness())
        return Service(
            name="trainer",
            full_names=(FULL_NAME,),
            register=lambda server: trainer_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, server),
            load=load,
        )

    return service


def test_get_run(serve_board, board, connect):
    with serve_in_background(serve_board) as server:
        client = connect(TrainerClient, AsyncTrainerClient, server.address)
        board.tell(stage="ppo", state="running", step=3, total_steps=9, metrics={"objective/kl": 1.5})
        run = client.get_run()
    assert (run.run_id, run.stage, run.state, run.step, run.total_steps) == ("run-1", "ppo", "running", 3, 9)
    assert run.metrics == {"objective/kl": 1.5}
    assert abs(run.started_at - board.status.started_at) < timedelta(milliseconds=1)
    assert run.last_step_at is None


def test_token(serve_board, connect):
    with serve_in_background(serve_board, ServerOptions(token="right")) as server:
        for token in ("", "wrong"):
            with pytest.raises(Unauthenticated, match="PLAUDIT_TOKEN"):
                connect(TrainerClient, AsyncTrainerClient, server.address, token=token).get_run()
        assert (
            connect(TrainerClient, AsyncTrainerClient, server.address, token="right").get_run().run_id
            == "run-1"
        )
