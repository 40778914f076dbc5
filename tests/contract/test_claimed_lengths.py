"""A list that says it has 2³¹ elements and brings three is refused before anything is allocated for it."""

import resource
from contextlib import ExitStack

import grpc
import pytest

from plaudit import PolicyClient, ReferenceClient, RewardClient
from plaudit.v1 import policy_pb2, reference_pb2, reward_pb2
from services.oip import open_inference_pb2 as oip
from services.policy.service import policy_service
from services.reference.service import reference_service
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions

CLAIMS = {
    "2^31-1": b"\xff\xff\xff\xff\x07",
    "2^31": b"\x80\x80\x80\x80\x08",
    "2^33": b"\x80\x80\x80\x80\x20",
    "2^63": b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
}
"""Lengths as varints: of so many ids of one byte, or of a quarter as many of four."""
SCORE, INFER = "plaudit.v1.RewardService/Score", "inference.GRPCInferenceService/ModelInfer"
LOGPROBS, GENERATE = "plaudit.v1.ReferenceService/ComputeLogprobs", "plaudit.v1.PolicyService/Generate"
FIELDS = [
    ("reward", SCORE, reward_pb2.ScoreRequest, "items.token_ids.ids"),
    ("reference", LOGPROBS, reference_pb2.ComputeLogprobsRequest, "sequences.token_ids"),
    ("policy", GENERATE, policy_pb2.GenerateRequest, "prompts.token_ids.ids"),
    ("policy", GENERATE, policy_pb2.GenerateRequest, "sampling.stop_token_ids"),
    ("reward", INFER, oip.ModelInferRequest, "inputs.shape"),
    ("reward", INFER, oip.ModelInferRequest, "inputs.contents.uint_contents"),
    ("reward", INFER, oip.ModelInferRequest, "raw_input_contents"),
]
MOST_GROWTH = 256 << 20
"""2³¹ ids would be 8 GiB."""


@pytest.fixture(scope="module")
def addresses(tiny_policy, tiny_reward):
    made = {
        "policy": (policy_service, tiny_policy),
        "reference": (reference_service, tiny_policy),
        "reward": (reward_service, tiny_reward),
    }
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                serve_in_background(
                    lambda make=make, folder=folder: make(
                        ModelOptions(str(folder), "cpu", "float32", 1), None
                    )
                )
            ).address
            for name, (make, folder) in made.items()
        }


def tags(message, path):
    """The first byte of each field on the way."""
    descriptor = message.DESCRIPTOR
    for name in path.split("."):
        field = descriptor.fields_by_name[name]
        yield bytes([field.number << 3 | 2])
        descriptor = field.message_type


def all_claim(message, path, claim):
    """Each field on the way says that it is so long."""
    return b"".join(tag + claim for tag in tags(message, path)) + b"\x01\x02\x03"


def the_list_claims(message, path, claim):
    """Those around the list are as long as they say."""
    *outer, last = tags(message, path)
    body = last + claim + b"\x01\x02\x03"
    for tag in reversed(outer):
        body = tag + bytes([len(body)]) + body
    return body


def most_memory():
    """The most memory, in bytes, that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def refused(address, method, body):
    """The error of a call, which takes no memory to speak of."""
    before = most_memory()
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{method}")(body, timeout=30)
    assert most_memory() - before < MOST_GROWTH
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value
    return caught.value.details()


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("claiming", [all_claim, the_list_claims])
@pytest.mark.parametrize(("service", "method", "message", "path"), FIELDS, ids=[each[3] for each in FIELDS])
def test_a_list_that_says_it_is_huge(addresses, service, method, message, path, claiming, claim):
    details = refused(addresses[service], method, claiming(message, path, CLAIMS[claim]))
    assert details.startswith("request: isn't the method's message")


def infer(rows, **fields):
    """A pair, of which each tensor says that it has `rows`."""
    contents = None if fields else oip.InferTensorContents(bytes_contents=[b"the film"])
    inputs = [
        oip.ModelInferRequest.InferInputTensor(name=name, datatype="BYTES", shape=[rows], contents=contents)
        for name in ("prompt", "response")
    ]
    return oip.ModelInferRequest(model_name="reward", inputs=inputs, **fields).SerializeToString()


@pytest.mark.parametrize("rows", [2**31 - 1, 2**31, 2**62, -1])
def test_a_tensor_that_says_it_has_many_rows(addresses, rows):
    raw = [b"\x03\x00\x00\x00abc"] * 2
    for body in (infer(rows), infer(rows, raw_input_contents=raw)):
        assert refused(addresses["reward"], INFER, body).startswith("inputs.prompt.shape: ")


def test_a_raw_text_that_says_it_is_long(addresses):
    raw = [b"\x00\x00\x00\x80abc"] * 2
    details = refused(addresses["reward"], INFER, infer(1, raw_input_contents=raw))
    assert details.startswith("inputs.prompt: breaks off at element 0 of 1")


def test_all_still_serve(addresses):
    with RewardClient(addresses["reward"]) as reward:
        assert reward.score([("the film is", " good")])[0].reward is not None
    with ReferenceClient(addresses["reference"]) as reference:
        assert reference.compute_logprobs([[1, 2, 3]], [1])
    with PolicyClient(addresses["policy"]) as policy:
        assert policy.generate(["the film is"], max_new_tokens=1)
