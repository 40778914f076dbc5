"""How a crowd reaches the reward service: by its own port, or through the gateway."""

import contextlib
from functools import partial

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from plaudit import RewardClient
from soak.over_http import HttpCaller, as_json

DEADLINE_S = 60.0


class OverGrpc:
    """`caller` and `probe` are context managers of a function each: one scores items and gives the seconds
    that they spent in the service, the other asks whether it is healthy. Both raise PlauditError, or
    grpc.RpcError.
    """

    def __init__(self, address):
        self._address = address

    @contextlib.contextmanager
    def caller(self):
        def score(items):
            timing = client.score(items, all_or_nothing=True).timing
            return timing.queue_seconds + timing.compute_seconds

        with RewardClient(self._address, timeout=DEADLINE_S) as client:
            yield score

    @contextlib.contextmanager
    def probe(self):
        with grpc.insecure_channel(self._address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            yield partial(health.Check, health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)


class OverHttp:
    """The same of the gateway. Its callers give no name, so that they are one caller to the service."""

    def __init__(self, address):
        self._address = address

    @contextlib.contextmanager
    def caller(self):
        def score(items):
            body = {"items": as_json(items), "all_or_nothing": True}
            timing = caller.ask_until_let_in("/v1/score", body)["timing"]
            return timing["queue_seconds"] + timing["compute_seconds"]

        with HttpCaller(self._address, DEADLINE_S) as caller:
            yield score

    @contextlib.contextmanager
    def probe(self):
        with HttpCaller(self._address, DEADLINE_S) as caller:
            yield caller.probe
