"""What tests do with tritonclient as released: `triton_calls.py ADDRESS ROWS NAME…` prints one JSON a name.

A process of its own: tritonclient registers its own copy of the protocol's messages, and protobuf has room
for one of each name.
"""

import asyncio
import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2

from plaudit.clients import RewardClient

ADDRESS, ROWS, *NAMES = sys.argv[1:]
PROMPTS, RESPONSES = zip(*json.loads(ROWS), strict=True)
TOKEN = {"authorization": "Bearer word"}


def column(name, texts, shape=None):
    elements = np.array([text.encode() for text in texts], dtype=np.object_).reshape(shape or [len(texts)])
    made = triton.InferInput(name, list(elements.shape), "BYTES")
    made.set_data_from_numpy(elements)
    return made


def inputs(prompts=PROMPTS, responses=RESPONSES, shape=None):
    return [column("prompt", prompts, shape), column("response", responses, shape)]


def numbers(result, names=("reward", "raw_reward", "token_count", "truncated_tokens")):
    found = {name: result.as_numpy(name) for name in names}
    return {name: [str(each.dtype), list(each.shape), each.tolist()] for name, each in found.items()}


def refusal(call, *args, **fields):
    try:
        call(*args, **fields)
    except triton.InferenceServerException as error:
        return [error.status(), error.message()]
    raise AssertionError("nothing was refused")


def state(client):
    return [client.is_server_live(), client.is_server_ready(), client.is_model_ready("reward")]


def state_with_token(client):
    return [
        client.is_server_live(headers=TOKEN),
        numbers(client.infer("reward", inputs(), headers=TOKEN)),
        refusal(client.is_server_live),
        refusal(client.infer, "reward", inputs()),
    ]


def metadata(client):
    return [
        client.get_server_metadata(as_json=True),
        client.get_model_metadata("reward", as_json=True),
    ]


def infer(client):
    result = client.infer("reward", inputs(), request_id="mine")
    response = result.get_response()
    return [numbers(result), response.model_name, response.model_version, response.id]


def infer_columns(client):
    return numbers(client.infer("reward", inputs(shape=[3, 1])))


def infer_compressed(client):
    return numbers(client.infer("reward", inputs(), compression_algorithm="gzip"))


def infer_version(client):
    (version,) = client.get_model_metadata("reward").versions
    return numbers(client.infer("reward", inputs(), model_version=version, client_timeout=30))


def infer_some_outputs(client):
    wanted = [triton.InferRequestedOutput(name) for name in ("raw_reward", "reward")]
    result = client.infer("reward", inputs(), outputs=wanted)
    return [[each.name for each in result.get_response().outputs], numbers(result, ("reward", "raw_reward"))]


def infer_without_waiting(client):
    answers = queue.Queue()
    for _ in range(20):
        client.async_infer("reward", inputs(), callback=lambda result, error: answers.put(error or result))
    return [numbers(answers.get(timeout=30)) for _ in range(20)]


def infer_by_aio(client):
    async def calls():
        async with triton_aio.InferenceServerClient(ADDRESS) as other:
            ready = await other.is_server_live() and await other.is_model_ready("reward")
            return [ready, numbers(await other.infer("reward", inputs()))]

    return asyncio.run(calls())


def infer_truncated(client):
    long = inputs(["a"], ["é" * 500])
    return [
        refusal(client.infer, "reward", long),
        numbers(client.infer("reward", long, parameters={"truncation": "right"})),
    ]


BAD_ROWS = inputs(["a"] * 5, [" b", "", " c", "<|pad|>", "é" * 500])


def bad_rows(client):
    return refusal(client.infer, "reward", BAD_ROWS)


def bad_rows_as_nan(client):
    result = client.infer("reward", BAD_ROWS, parameters={"bad_rows": "nan"})
    told = result.get_response().parameters
    return [numbers(result), {name: each.string_param for name, each in told.items()}]


def refusals(client):
    short = inputs(PROMPTS[:2], RESPONSES[:2])
    shared = triton.InferInput("prompt", [3], "BYTES").set_shared_memory("region", 9)
    floats = triton.InferInput("prompt", [3], "FP32").set_data_from_numpy(np.zeros(3, np.float32))
    return {
        "model": refusal(client.infer, "other", inputs()),
        "model ready": refusal(client.is_model_ready, "other"),
        "model metadata": refusal(client.get_model_metadata, "other"),
        "version": refusal(client.infer, "reward", inputs(), model_version="1"),
        "version ready": refusal(client.is_model_ready, "reward", "1"),
        "no response": refusal(client.infer, "reward", inputs()[:1]),
        "counts": refusal(client.infer, "reward", [inputs()[0], short[1]]),
        "datatype": refusal(client.infer, "reward", [floats, inputs()[1]]),
        "shape": refusal(client.infer, "reward", inputs(shape=[1, 3])),
        "output": refusal(
            client.infer, "reward", inputs(), outputs=[triton.InferRequestedOutput("score")]
        ),
        "classes": refusal(
            client.infer, "reward", inputs(), outputs=[triton.InferRequestedOutput("reward", class_count=2)]
        ),
        "parameter": refusal(client.infer, "reward", inputs(), parameters={"truncate": "left"}),
        "priority": refusal(client.infer, "reward", inputs(), priority=1),
        "nothing": refusal(client.infer, "reward", inputs([], [])),
        "shared memory": refusal(client.infer, "reward", [shared, inputs()[1]]),
        "config": refusal(client.get_model_config, "reward"),
        "repository": refusal(client.get_model_repository_index),
        "statistics": refusal(client.get_inference_statistics),
    }  # fmt: skip


def beside_our_own_client(client):
    with RewardClient(ADDRESS) as other:
        rewards = other.score(zip(PROMPTS, RESPONSES, strict=True)).rewards
    return [rewards.tolist(), numbers(client.infer("reward", inputs()), ("reward",))]


def protocol(client):
    """Message → {field number: [name, type, whether it repeats]} of the client's own copy."""

    def fields(message):
        return {each.number: [each.name, each.type, each.is_repeated] for each in message.fields}

    messages = list(service_pb2.DESCRIPTOR.message_types_by_name.values())
    for message in messages:  # grows while it is walked
        messages.extend(message.nested_types)
    return {message.full_name: fields(message) for message in messages}


if __name__ == "__main__":
    with triton.InferenceServerClient(ADDRESS) as made:
        for name in NAMES:
            print(json.dumps(globals()[name](made)), flush=True)
