"""A policy server on the tiny model, and what tests say to it."""

import contextlib

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status

from lm.digests import WeightsDigest, effective_tensors, tensor_bytes
from lm.loading import load_causal_lm
from lm.placement import DTYPE_NAMES, choose_placement
from plaudit.v1 import policy_pb2, policy_pb2_grpc, types_pb2, weights_pb2, weights_pb2_grpc
from services.policy.service import policy_service
from services.rpc.command import ModelOptions
from services.rpc.convert import data_type
from services.rpc.server import start_server

F32 = choose_placement("cpu", "float32", 1)


class PolicyCaller:
    """Both stubs of a server, with what tests ask for again and again."""

    def __init__(self, channel, service):
        self.channel = channel
        self.policy = policy_pb2_grpc.PolicyServiceStub(channel)
        self.weights = weights_pb2_grpc.WeightsServiceStub(channel)
        self.registry = service.metrics.registry

    def generating(self, *prompts, within=30, samples=None, deterministic=False, exactly=None, **sampling):
        """The call itself, to be awaited or cancelled."""
        request = policy_pb2.GenerateRequest(
            prompts=prompts,
            samples_per_prompt=samples,
            deterministic=deterministic,
            step_exactly=exactly,
            sampling=policy_pb2.SamplingParams(**{"max_new_tokens": 6, **sampling}),
        )
        return self.policy.Generate(request, timeout=within)

    async def generate(self, *prompts, **how):
        return await self.generating(*prompts, **how)

    async def describe(self):
        return await self.policy.GetPolicy(policy_pb2.GetPolicyRequest(), timeout=30)

    async def begin(self, manifest):
        return await self.weights.BeginPush(weights_pb2.BeginPushRequest(manifest=manifest), timeout=30)

    async def send(self, push_id, data, size=4096, start=0):
        chunks = [
            weights_pb2.PushChunksRequest(push_id=push_id, offset=at, data=data[at : at + size])
            for at in range(start, len(data), size)
        ]
        return await self.weights.PushChunks(iter(chunks), timeout=30)

    async def commit(self, push_id, mode=policy_pb2.SWAP_MODE_UNSPECIFIED):
        request = weights_pb2.CommitPushRequest(push_id=push_id, mode=mode)
        return (await self.weights.CommitPush(request, timeout=30)).model

    async def abort(self, push_id):
        return (await self.weights.AbortPush(weights_pb2.AbortPushRequest(push_id=push_id), timeout=30)).model

    async def push(self, push, mode=policy_pb2.SWAP_MODE_UNSPECIFIED):
        opened = await self.begin(push.manifest())
        await self.send(opened.push_id, push.data)
        return await self.commit(opened.push_id, mode)

    def metric(self, name, **labels):
        return self.registry.get_sample_value(name, labels) or 0


class NewWeights:
    """Weights to push: those of the folder, each tensor moved a little."""

    def __init__(self, folder, amount=0.1, names=None, placement=F32):
        self.loaded = load_causal_lm(str(folder), placement)
        model = self.loaded.model
        self.tensors = [
            (name, tensor.detach() + amount)
            for name, tensor in effective_tensors(model)
            if names is None or name in names
        ]
        for name, tensor in self.tensors:
            model.get_parameter(name).data.copy_(tensor)
        self.sha256 = WeightsDigest(effective_tensors(model)).hexdigest()
        self.data = b"".join(bytes(tensor_bytes(tensor)) for _, tensor in self.tensors)

    def manifest(self, **changes):
        tensors = [
            weights_pb2.TensorSpec(name=name, dtype=data_type(DTYPE_NAMES[tensor.dtype]), shape=tensor.shape)
            for name, tensor in self.tensors
        ]
        return weights_pb2.PushManifest(
            **{
                "run_id": "run",
                "base_step": 0,
                "new_step": 1,
                "tensors": tensors,
                "weights_sha256": self.sha256,
                "encoding": weights_pb2.PUSH_ENCODING_FULL,
                **changes,
            }
        )


def prompt(*ids, seed=0):
    return policy_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=ids), seed=seed)


def tokens(response):
    return [list(sequence.token_ids) for sequence in response.sequences]


@contextlib.asynccontextmanager
async def policy_server(folder, dtype="float32", device="cpu", **options):
    service = policy_service(ModelOptions(str(folder), device, dtype, 1), **options)
    async with start_server(service) as server:
        await server.wait_ready()
        async with aio.insecure_channel(server.address) as channel:
            yield PolicyCaller(channel, service)


async def refused(call):
    """The error that a call ends with."""
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value


def detail(error, kind):
    """The first detail of `kind` in an error."""
    for packed in rpc_status.from_call(error).details:
        if packed.Is(kind.DESCRIPTOR):
            found = kind()
            packed.Unpack(found)
            return found
    return pytest.fail(f"no {kind.__name__} in {error}")


def violations(error):
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    fields = detail(error, error_details_pb2.BadRequest).field_violations
    return {violation.field: violation.description for violation in fields}


def precondition(error):
    """(kind, subject) of a FAILED_PRECONDITION."""
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION, error
    (violation,) = detail(error, error_details_pb2.PreconditionFailure).violations
    return violation.type, violation.subject
