"""Between WeightsService's messages and the policy's own words: the only place that knows both."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from plaudit.v1 import policy_pb2, types_pb2, weights_pb2
from services.errors import InvalidInput, Violation
from services.policy.convert import MOST_VIOLATIONS
from services.policy.interface import Manifest, PushState, SwapMode, TensorSpec

if TYPE_CHECKING:  # it brings torch
    from services.policy.push import Push

_DTYPES = {
    types_pb2.DATA_TYPE_F64: "float64",
    types_pb2.DATA_TYPE_F32: "float32",
    types_pb2.DATA_TYPE_F16: "float16",
    types_pb2.DATA_TYPE_BF16: "bfloat16",
}
_SWAP_MODES = {
    policy_pb2.SWAP_MODE_UNSPECIFIED: SwapMode.IN_PLACE,
    policy_pb2.SWAP_MODE_IN_PLACE: SwapMode.IN_PLACE,
    policy_pb2.SWAP_MODE_DRAIN: SwapMode.DRAIN,
}

_STATES = {
    PushState.OPEN: weights_pb2.PUSH_STATE_OPEN,
    PushState.COMMITTING: weights_pb2.PUSH_STATE_COMMITTING,
    PushState.COMMITTED: weights_pb2.PUSH_STATE_COMMITTED,
    PushState.FAILED: weights_pb2.PUSH_STATE_FAILED,
    PushState.GIVEN_UP: weights_pb2.PUSH_STATE_GIVEN_UP,
}


def manifest(message: weights_pb2.PushManifest) -> Manifest:
    """The manifest. Raises InvalidInput with the first violations found."""
    violations = list(islice(_violations(message), MOST_VIOLATIONS))
    if violations:
        raise InvalidInput(violations)
    return Manifest(
        run_id=message.run_id,
        base_step=message.base_step,
        new_step=message.new_step,
        tensors=tuple(
            TensorSpec(tensor.name, _DTYPES[tensor.dtype], tuple(tensor.shape)) for tensor in message.tensors
        ),
        weights_sha256=message.weights_sha256,
    )


def swap_mode(mode: policy_pb2.SwapMode.ValueType) -> SwapMode:
    """The mode; IN_PLACE if not stated. Raises InvalidInput for one this server doesn't know."""
    if mode not in _SWAP_MODES:
        raise InvalidInput.at(
            "mode", f"is {mode}, which isn't known here; use SWAP_MODE_IN_PLACE or SWAP_MODE_DRAIN"
        )
    return _SWAP_MODES[mode]


def get_push_response(push: "Push") -> weights_pb2.GetPushResponse:
    """The push as it is now."""
    return weights_pb2.GetPushResponse(
        push_id=push.id,
        state=_STATES[push.state],
        received_bytes=push.received,
        total_bytes=push.total,
        expires_in_seconds=push.expires_in,
    )


def _violations(message: weights_pb2.PushManifest) -> Iterator[Violation]:
    if message.encoding != weights_pb2.PUSH_ENCODING_FULL:
        yield Violation("manifest.encoding", "isn't known here; use PUSH_ENCODING_FULL")
    for index, tensor in enumerate(message.tensors):
        if tensor.dtype not in _DTYPES:
            yield Violation(
                f"manifest.tensors[{index}].dtype", "is not stated or unknown; use what GetPolicy tells"
            )
