"""From the services' messages to plain values; to_proto.py is the way back.

A value of an enumeration that is newer than this client reads as "unspecified".
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from plaudit.clients import data, data_reward
from plaudit.clients.errors import ItemFailure, Violation
from plaudit.clients.unsendable import Unsendable
from plaudit.v1 import policy_pb2, reference_pb2, reward_pb2, trainer_pb2, types_pb2, weights_pb2

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DTYPES: dict[int, data.DType] = {
    types_pb2.DATA_TYPE_F64: "float64",
    types_pb2.DATA_TYPE_F32: "float32",
    types_pb2.DATA_TYPE_F16: "float16",
    types_pb2.DATA_TYPE_BF16: "bfloat16",
}
FINISH_REASONS: dict[int, data.FinishReason] = {
    policy_pb2.FINISH_REASON_EOS: "eos",
    policy_pb2.FINISH_REASON_STOP_TOKEN: "stop_token",
    policy_pb2.FINISH_REASON_STOP_STRING: "stop_string",
    policy_pb2.FINISH_REASON_LENGTH: "length",
}
SWAP_MODES: dict[int, data.SwapMode] = {
    policy_pb2.SWAP_MODE_IN_PLACE: "in_place",
    policy_pb2.SWAP_MODE_DRAIN: "drain",
}
PUSH_STATES: dict[int, data.PushState] = {
    weights_pb2.PUSH_STATE_OPEN: "open",
    weights_pb2.PUSH_STATE_COMMITTING: "committing",
    weights_pb2.PUSH_STATE_COMMITTED: "committed",
    weights_pb2.PUSH_STATE_FAILED: "failed",
    weights_pb2.PUSH_STATE_GIVEN_UP: "given_up",
}
TRUNCATIONS: dict[int, data_reward.Truncation] = {
    reward_pb2.TRUNCATION_ERROR: "error",
    reward_pb2.TRUNCATION_LEFT: "left",
    reward_pb2.TRUNCATION_RIGHT: "right",
}
PRIORITIES: dict[int, data_reward.Priority] = {
    reward_pb2.PRIORITY_LOW: "low",
    reward_pb2.PRIORITY_NORMAL: "normal",
    reward_pb2.PRIORITY_HIGH: "high",
}
COMBINATIONS: dict[int, data_reward.Combination] = {
    reward_pb2.COMBINATION_MEAN: "mean",
    reward_pb2.COMBINATION_MIN: "min",
    reward_pb2.COMBINATION_MEAN_MINUS_STD: "mean_minus_std",
    reward_pb2.COMBINATION_WEIGHTED_SUM: "weighted_sum",
}
STAGES: dict[int, data.Stage] = {
    trainer_pb2.STAGE_SFT: "sft",
    trainer_pb2.STAGE_REWARD_MODEL: "reward_model",
    trainer_pb2.STAGE_PPO: "ppo",
}
RUN_STATES: dict[int, data.RunState] = {
    trainer_pb2.RUN_STATE_STARTING: "starting",
    trainer_pb2.RUN_STATE_RUNNING: "running",
    trainer_pb2.RUN_STATE_FINISHED: "finished",
    trainer_pb2.RUN_STATE_STOPPED: "stopped",
    trainer_pb2.RUN_STATE_FAILED: "failed",
}
CODE_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


def model_version(message: types_pb2.ModelVersion) -> data.ModelVersion:
    """Which model answered."""
    return data.ModelVersion(
        message.model_id, message.run_id, message.step, message.weights_sha256, message.tokenizer_sha256
    )


def generation(response: policy_pb2.GenerateResponse) -> data.Generation:
    """The responses to a batch of prompts."""
    return data.Generation(
        sequences=tuple(_generated_sequence(sequence) for sequence in response.sequences),
        prompt_token_ids=tuple(tuple(prompt.ids) for prompt in response.prompt_token_ids),
        model=model_version(response.model),
    )


def policy_info(response: policy_pb2.GetPolicyResponse) -> data.PolicyInfo:
    """The policy that is loaded."""
    return data.PolicyInfo(
        model=model_version(response.model),
        engine=response.engine,
        dtype=DTYPES.get(response.dtype, "unspecified"),
        vocabulary_size=response.vocabulary_size,
        context_length=response.context_length,
        eos_token_ids=tuple(response.eos_token_ids),
        has_chat_template=response.has_chat_template,
        chat_template_sha256=response.chat_template_sha256,
        swap_modes=tuple(SWAP_MODES[mode] for mode in response.swap_modes if mode in SWAP_MODES),
        limits=_limits(response.limits),
        queue=_queue(response.queue),
    )


def push_status(response: weights_pb2.GetPushResponse) -> data.PushStatus:
    """How far a push is."""
    return data.PushStatus(
        push_id=response.push_id,
        state=PUSH_STATES.get(response.state, "unspecified"),
        received_bytes=response.received_bytes,
        total_bytes=response.total_bytes,
        expires_in=response.expires_in_seconds,
    )


def logprobs(response: reference_pb2.ComputeLogprobsResponse) -> data.Logprobs:
    """Per sequence one array."""
    return data.Logprobs(
        [_floats(sequence.logprobs) for sequence in response.sequences], model_version(response.model)
    )


def reference_info(response: reference_pb2.GetReferenceResponse) -> data.ReferenceInfo:
    """The reference model that is loaded."""
    return data.ReferenceInfo(
        model=model_version(response.model),
        dtype=DTYPES.get(response.dtype, "unspecified"),
        vocabulary_size=response.vocabulary_size,
        context_length=response.context_length,
        limits=_limits(response.limits),
        queue=_queue(response.queue),
    )


def scores(response: reward_pb2.ScoreResponse, unsendable: Unsendable) -> data_reward.Scores:
    """One result per item."""
    return data_reward.Scores(
        unsendable.put_into(tuple(score_result(result) for result in response.results)),
        model_version(response.model),
        _timing(response.timing),
    )


def score_result(message: reward_pb2.ScoreResult) -> data_reward.Reward | ItemFailure:
    """The score of one item, or why there is none."""
    match message.WhichOneof("result"):
        case "reward":
            return _reward(message.reward)
        case "error":
            return _item_failure(message.error)
        case None:
            return ItemFailure("INTERNAL", "the service sent neither a reward nor a reason")


def ranking(response: reward_pb2.RankResponse) -> data_reward.Ranking:
    """The order of some candidates."""
    return data_reward.Ranking(
        ranked=tuple(
            data_reward.RankedCandidate(c.index, c.rank, _reward(c.reward)) for c in response.ranked
        ),
        unranked=tuple(
            data_reward.UnrankedCandidate(c.index, _item_failure(c.error)) for c in response.unranked
        ),
        model=model_version(response.model),
        timing=_timing(response.timing),
    )


def comparison(response: reward_pb2.CompareResponse) -> data_reward.Comparison:
    """Which of two responses is preferred."""
    return data_reward.Comparison(
        probability=response.probability,
        temperature=response.temperature,
        first=_reward(response.first),
        second=_reward(response.second),
        model=model_version(response.model),
        timing=_timing(response.timing),
    )


def reward_info(response: reward_pb2.GetModelResponse) -> data_reward.RewardInfo:
    """A reward model that is loaded."""
    return data_reward.RewardInfo(
        model=model_version(response.model),
        dtype=DTYPES.get(response.dtype, "unspecified"),
        vocabulary_size=response.vocabulary_size,
        context_length=response.context_length,
        reward_mean=response.reward_mean,
        reward_std=response.reward_std,
        has_chat_template=response.has_chat_template,
        limits=_limits(response.limits),
        name=response.name,
        stream_window=response.stream_window,
        compare_temperature=response.compare_temperature,
        combination=COMBINATIONS.get(response.combination, "unspecified"),
        deviation_factor=response.deviation_factor,
        components=tuple(_component_info(component) for component in response.components),
        queue=_queue(response.queue),
    )


def listed_models(response: reward_pb2.ListModelsResponse) -> tuple[data_reward.ListedModel, ...]:
    """The models of a server; the first is its default."""
    return tuple(
        data_reward.ListedModel(listed.name, model_version(listed.model), _queue(listed.queue))
        for listed in response.models
    )


def run(message: trainer_pb2.Run) -> data.Run:
    """A training run."""
    return data.Run(
        run_id=message.run_id,
        stage=STAGES.get(message.stage, "unspecified"),
        state=RUN_STATES.get(message.state, "unspecified"),
        step=message.step,
        total_steps=message.total_steps,
        started_at=_time(message.started_at),
        last_step_at=_time(message.last_step_at) if message.HasField("last_step_at") else None,
        metrics=dict(message.metrics),
        checkpoint=message.checkpoint,
        error=message.error,
    )


def _generated_sequence(message: policy_pb2.GeneratedSequence) -> data.GeneratedSequence:
    return data.GeneratedSequence(
        prompt_index=message.prompt_index,
        sample_index=message.sample_index,
        token_ids=tuple(message.token_ids),
        text=message.text,
        finish_reason=FINISH_REASONS.get(message.finish_reason, "unspecified"),
        logprobs=_floats(message.logprobs),
        logprobs_temperature_1=_floats(message.logprobs_temperature_1),
        version_spans=tuple(data.VersionSpan(s.step, s.start, s.end) for s in message.version_spans),
        seed=message.seed,
    )


def _reward(message: reward_pb2.Reward) -> data_reward.Reward:
    side = TRUNCATIONS.get(message.truncation)
    return data_reward.Reward(
        message.raw_reward,
        message.reward,
        message.token_count,
        message.truncated_tokens,
        None if side == "error" else side,
        tuple(data_reward.RewardComponent(c.name, c.raw_reward, c.reward) for c in message.components),
    )


def _item_failure(message: types_pb2.ItemError) -> ItemFailure:
    violations = tuple(Violation(v.field, v.description) for v in message.field_violations)
    return ItemFailure(CODE_NAMES.get(message.code, "UNKNOWN"), message.message, violations)


def _timing(message: reward_pb2.Timing) -> data_reward.Timing:
    return data_reward.Timing(message.tokenize_seconds, message.queue_seconds, message.compute_seconds)


def _component_info(message: reward_pb2.ComponentInfo) -> data_reward.ComponentInfo:
    model = model_version(message.model) if message.HasField("model") else None
    return data_reward.ComponentInfo(message.name, message.weight, model)


def _queue(message: types_pb2.QueueDepth) -> data.QueueDepth:
    return data.QueueDepth(message.items, message.tokens, message.bytes)


def _limits(message: types_pb2.CallLimits) -> data.CallLimits:
    most = message.max_message_bytes
    return data.CallLimits(message.max_items, message.max_tokens, most, message.max_request_bytes or most)


def _floats(values: Sequence[float]) -> "NDArray[np.float32]":
    import numpy as np  # as in data.py

    return np.array(values, dtype=np.float32)


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)
