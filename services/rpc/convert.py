"""Messages that every service shares, from our own words."""

from plaudit.v1 import types_pb2
from services.batching import CallLimits
from services.rpc import status
from services.rpc.metrics import Queue
from services.rpc.options import MAX_MESSAGE_BYTES

LEAST_TEMPERATURE = 9.999999747378752e-05
"""1e-4, as a float of 32 bits has it. Logits divided by less overflow, and have no log-probabilities."""
_DATA_TYPES = {
    "float64": types_pb2.DATA_TYPE_F64,
    "float32": types_pb2.DATA_TYPE_F32,
    "float16": types_pb2.DATA_TYPE_F16,
    "bfloat16": types_pb2.DATA_TYPE_BF16,
}


def call_limits(limits: CallLimits) -> types_pb2.CallLimits:
    """The message of the limits."""
    return types_pb2.CallLimits(
        max_items=limits.max_items,
        max_tokens=limits.max_tokens,
        max_message_bytes=MAX_MESSAGE_BYTES,
        max_request_bytes=limits.max_bytes,
    )


def queue_depth(queue: Queue) -> types_pb2.QueueDepth:
    """The message of how much waits."""
    return types_pb2.QueueDepth(
        items=queue.waiting_items, tokens=queue.waiting_tokens, bytes=queue.waiting_bytes
    )


def data_type(name: str) -> types_pb2.DataType.ValueType:
    """The enum value of a type name such as "bfloat16"."""
    return _DATA_TYPES[name]


def item_error(error: Exception) -> types_pb2.ItemError:
    """One item's error as its caller sees it; anything not raised on purpose is INTERNAL."""
    refusal = status.refusal(error)
    if refusal is None:
        return types_pb2.ItemError(code=13, message=str(error))
    fields = [
        types_pb2.FieldViolation(field=violation.field, description=violation.description)
        for violation in refusal.violations
    ]
    return types_pb2.ItemError(code=refusal.number, message=refusal.message, field_violations=fields)
