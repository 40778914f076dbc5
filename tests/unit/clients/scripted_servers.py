"""Servers that say over the wire what a test tells them to, call by call, and remember what they heard."""

import asyncio
import threading
from concurrent import futures
from dataclasses import dataclass, field

import grpc
from google.protobuf.any_pb2 import Any as AnyProto
from google.rpc import status_pb2

from plaudit import (
    AsyncPolicyClient,
    AsyncRewardClient,
    AsyncWeightsClient,
    PolicyClient,
    RewardClient,
    WeightsClient,
)
from plaudit.v1 import policy_pb2, reward_pb2, trainer_pb2, types_pb2, weights_pb2

POLICY = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"]
WEIGHTS = weights_pb2.DESCRIPTOR.services_by_name["WeightsService"]
REWARD = reward_pb2.DESCRIPTOR.services_by_name["RewardService"]
TRAINER = trainer_pb2.DESCRIPTOR.services_by_name["TrainerService"]

MODEL = types_pb2.ModelVersion(model_id="tiny", step=4, weights_sha256="ab", tokenizer_sha256="cd")
SCORED = reward_pb2.ScoreResponse(
    results=[reward_pb2.ScoreResult(reward=reward_pb2.Reward(raw_reward=1.5, reward=0.5, token_count=3))],
    model=MODEL,
)


HANDLERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


@dataclass
class Heard:
    """One call as the server saw it."""

    method: str
    request: object
    metadata: dict
    seconds_left: float


@dataclass
class Script:
    """What a server does: the behaviours of each method in turn, the last one again and again.

    A behaviour is the response, or a function of (request, context); of (requests, context) for a stream.
    """

    behaviours: dict[str, list]
    heard: list[Heard] = field(default_factory=list)
    address: str = ""
    busy: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def calls(self, method):
        return [heard for heard in self.heard if heard.method == method]

    def run(self, method, request, context):
        metadata = dict(context.invocation_metadata())
        self.heard.append(Heard(method, request, metadata, context.time_remaining()))
        steps = self.behaviours[method]
        behaviour = steps.pop(0) if len(steps) > 1 else steps[0]
        return behaviour(request, context) if callable(behaviour) else behaviour

    def hang(self, request, context):
        """A behaviour: no answer until the test is over."""
        self.busy.set()
        self.over.wait(30)
        context.abort(grpc.StatusCode.INTERNAL, "the test is over")

    def start(self, service, address="127.0.0.1:0", options=()):
        self.server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0), *options])
        handlers = {name: self._handler(service.methods_by_name[name]) for name in self.behaviours}
        self.server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service.full_name, handlers)]
        )
        port = self.server.add_insecure_port(address)
        self.address = f"{address.rpartition(':')[0]}:{port}"
        self.server.start()
        return self

    def stop(self):
        self.over.set()
        self.server.stop(0).wait(10)

    def _handler(self, method):
        def run(request, context):
            return self.run(method.name, request, context)

        kind = HANDLERS[method.client_streaming, method.server_streaming]
        return kind(run, method.input_type._concrete_class.FromString, lambda m: m.SerializeToString())


def refuse(code, message, *details, pushback_ms=None, status=None):
    """A behaviour: end the call with a google.rpc.Status of these details, as our services do."""

    def behave(request, context):
        packed = []
        for detail in details:
            packed.append(AnyProto())
            packed[-1].Pack(detail)
        rich = status_pb2.Status(code=code.value[0], message=message, details=packed).SerializeToString()
        trailers = [("grpc-status-details-bin", rich if status is None else status)]
        if pushback_ms is not None:
            trailers.append(("grpc-retry-pushback-ms", str(pushback_ms)))
        context.set_trailing_metadata(trailers)
        context.abort(code, message)

    return behave


def refuse_plainly(code, message):
    """A behaviour: end the call as a server that knows no details does."""
    return lambda request, context: context.abort(code, message)


SYNC_CLIENTS = {"policy": PolicyClient, "reward": RewardClient, "weights": WeightsClient}
ASYNC_CLIENTS = {"policy": AsyncPolicyClient, "reward": AsyncRewardClient, "weights": AsyncWeightsClient}


def call_sync(service, address, method, *arguments, client=None, **named):
    """Calls a method of a sync client."""
    with SYNC_CLIENTS[service](address, **(client or {})) as made:
        return getattr(made, method)(*arguments, **named)


def call_async(service, address, method, *arguments, client=None, **named):
    """Calls a method of an async client, in a loop of its own."""

    async def call():
        async with ASYNC_CLIENTS[service](address, **(client or {})) as made:
            return await getattr(made, method)(*arguments, **named)

    return asyncio.run(call())
