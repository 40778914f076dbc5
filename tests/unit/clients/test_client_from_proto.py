"""Responses come out as plain values and float32 arrays, whatever newer services add."""

from datetime import UTC, datetime

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, strategies as st
from scripted_servers import MODEL

from plaudit import CallLimits, ModelVersion, QueueDepth, VersionSpan
from plaudit.clients import from_proto
from plaudit.v1 import policy_pb2, reference_pb2, reward_pb2, trainer_pb2, types_pb2

VERSION = ModelVersion("tiny", "", 4, "ab", "cd")
LIMITS = types_pb2.CallLimits(max_items=1, max_tokens=2, max_message_bytes=3)


def test_generation():
    sequence = policy_pb2.GeneratedSequence(
        prompt_index=1,
        sample_index=2,
        token_ids=[5, 6],
        text="ab",
        finish_reason=policy_pb2.FINISH_REASON_EOS,
        logprobs=[-0.5, -1.5],
        logprobs_temperature_1=[-0.25, -0.75],
        version_spans=[policy_pb2.VersionSpan(step=4, start=0, end=2)],
        seed=2**64 - 1,
    )
    response = policy_pb2.GenerateResponse(
        sequences=[sequence], prompt_token_ids=[types_pb2.TokenIds(ids=[1, 2])], model=MODEL
    )
    generation = from_proto.generation(response)
    (read,) = generation.sequences
    assert (read.prompt_index, read.sample_index, read.token_ids, read.text) == (1, 2, (5, 6), "ab")
    assert read.logprobs.dtype == read.logprobs_temperature_1.dtype == np.float32
    assert read.logprobs.tolist() == [-0.5, -1.5]
    assert read.logprobs_temperature_1.tolist() == [-0.25, -0.75]
    assert read.version_spans == (VersionSpan(4, 0, 2),)
    assert read.seed == 2**64 - 1
    assert (generation.prompt_token_ids, generation.model) == (((1, 2),), VERSION)


@pytest.mark.parametrize(
    ("number", "name", "ended"),
    [
        (policy_pb2.FINISH_REASON_EOS, "eos", True),
        (policy_pb2.FINISH_REASON_STOP_TOKEN, "stop_token", True),
        (policy_pb2.FINISH_REASON_STOP_STRING, "stop_string", False),
        (policy_pb2.FINISH_REASON_LENGTH, "length", False),
        (99, "unspecified", False),
    ],
)
def test_finish_reasons(number, name, ended):
    message = policy_pb2.GeneratedSequence(finish_reason=number)
    (read,) = from_proto.generation(policy_pb2.GenerateResponse(sequences=[message])).sequences
    assert (read.finish_reason, read.ended) == (name, ended)


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=50))
def test_arrays_have_the_bits_that_were_sent(values):
    message = reference_pb2.ComputeLogprobsResponse(
        sequences=[reference_pb2.SequenceLogprobs(logprobs=values)], model=MODEL
    )
    wire = reference_pb2.ComputeLogprobsResponse.FromString(message.SerializeToString())
    (array,), model = from_proto.logprobs(wire)
    assert array.tobytes() == np.array(values, dtype=np.float32).tobytes()
    assert (array.shape, model) == ((len(values),), VERSION)


def test_arrays_outlive_the_message_and_may_be_written():
    message = reference_pb2.ComputeLogprobsResponse(
        sequences=[reference_pb2.SequenceLogprobs(logprobs=[1.0])]
    )
    values = from_proto.logprobs(message).values
    del message
    values[0] += 1
    assert values[0].tolist() == [2.0]


def test_infos():
    policy = from_proto.policy_info(
        policy_pb2.GetPolicyResponse(
            model=MODEL,
            engine="torch",
            dtype=types_pb2.DATA_TYPE_BF16,
            vocabulary_size=300,
            context_length=128,
            eos_token_ids=[2, 3],
            has_chat_template=True,
            chat_template_sha256="ee",
            swap_modes=[policy_pb2.SWAP_MODE_IN_PLACE, policy_pb2.SWAP_MODE_DRAIN, 77],
            limits=LIMITS,
            queue=types_pb2.QueueDepth(items=4, tokens=50, bytes=60),
        )
    )
    assert policy.queue == QueueDepth(4, 50, 60)
    assert (policy.model, policy.engine, policy.dtype) == (VERSION, "torch", "bfloat16")
    assert (policy.vocabulary_size, policy.context_length, policy.eos_token_ids) == (300, 128, (2, 3))
    assert (policy.has_chat_template, policy.chat_template_sha256) == (True, "ee")
    assert policy.swap_modes == ("in_place", "drain"), "a mode this client doesn't know can't be asked for"
    assert policy.limits == CallLimits(1, 2, 3, 3), "an older service says one size for both"
    reference = from_proto.reference_info(
        reference_pb2.GetReferenceResponse(
            model=MODEL, dtype=99, vocabulary_size=300, context_length=128, limits=LIMITS
        )
    )
    assert (reference.dtype, reference.limits) == ("unspecified", CallLimits(1, 2, 3, 3))
    assert reference.queue == QueueDepth(0, 0, 0), "an older service doesn't say"


def test_run():
    started, ended = Timestamp(seconds=1_700_000_000), Timestamp(seconds=1_700_000_060)
    message = trainer_pb2.Run(
        run_id="r",
        stage=trainer_pb2.STAGE_PPO,
        state=trainer_pb2.RUN_STATE_RUNNING,
        step=3,
        total_steps=10,
        started_at=started,
        metrics={"objective/kl": 1.5},
    )
    run = from_proto.run(message)
    assert (run.stage, run.state, run.step, run.total_steps) == ("ppo", "running", 3, 10)
    assert run.started_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert run.last_step_at is None
    assert (run.metrics, run.checkpoint, run.error) == ({"objective/kl": 1.5}, "", "")
    message.last_step_at.CopyFrom(ended)
    assert from_proto.run(message).last_step_at > run.started_at


@pytest.mark.parametrize(
    ("table", "enum"),
    [
        (from_proto.DTYPES, types_pb2.DataType),
        (from_proto.FINISH_REASONS, policy_pb2.FinishReason),
        (from_proto.SWAP_MODES, policy_pb2.SwapMode),
        (from_proto.TRUNCATIONS, reward_pb2.Truncation),
        (from_proto.PRIORITIES, reward_pb2.Priority),
        (from_proto.COMBINATIONS, reward_pb2.Combination),
        (from_proto.STAGES, trainer_pb2.Stage),
        (from_proto.RUN_STATES, trainer_pb2.RunState),
    ],
    ids=lambda value: getattr(getattr(value, "DESCRIPTOR", None), "name", ""),
)
def test_every_value_of_the_contract_has_a_name(table, enum):
    assert set(table) == set(enum.values()) - {0}
