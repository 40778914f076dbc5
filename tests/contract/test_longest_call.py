"""No call stays open for ever, not even one that its caller neither limits nor goes on with."""

import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from reward_server import options

from services.reward.service import reward_service
from services.rpc import server
from services.rpc.background import serve_in_background
from services.rpc.server import ServerOptions

SHORTER = {"grpc.max_connection_age_ms": 200, "grpc.max_connection_age_grace_ms": 300}
HANGS_S = 20.0
"""A test ends here at the latest; nothing is promised for this."""


@pytest.fixture
def address(tiny_reward, monkeypatch):
    """A server whose connections, and the calls on them, end soon."""
    given = dict(server.CHANNEL_OPTIONS)
    assert SHORTER.keys() <= given.keys()
    monkeypatch.setattr(server, "CHANNEL_OPTIONS", tuple({**given, **SHORTER}.items()))
    with serve_in_background(lambda: reward_service(options(tiny_reward)), ServerOptions()) as running:
        yield running.address


@pytest.fixture
def channel(address):
    with grpc.insecure_channel(address) as channel:
        yield channel


def ended(error):
    return error.code() is grpc.StatusCode.UNAVAILABLE


def test_a_request_that_never_comes(channel):
    opened = threading.Event()

    def nothing():
        opened.wait(HANGS_S)
        yield from ()

    score = channel.stream_unary("/plaudit.v1.RewardService/Score")  # sends the head, and no message
    try:
        with pytest.raises(grpc.RpcError) as caught:
            score(nothing(), timeout=HANGS_S)
    finally:
        opened.set()
    assert ended(caught.value), "by the server, and not by the deadline"


def test_a_watcher_without_a_deadline(channel):
    watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    stop = threading.Timer(HANGS_S, watching.cancel)
    stop.start()
    try:
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            next(watching)
    finally:
        stop.cancel()
    assert ended(caught.value), "by the server, and not cancelled"


def test_those_who_come_later_are_served_over_a_connection_of_their_own(channel):
    """The end of an old connection fails no call that is made meanwhile."""
    health = health_pb2_grpc.HealthStub(channel)
    watching = health.Watch(health_pb2.HealthCheckRequest(), timeout=HANGS_S)
    answers = [next(watching).status]
    while watching.is_active():
        answers.append(health.Check(health_pb2.HealthCheckRequest(), timeout=HANGS_S).status)
    assert len(answers) > 1 and set(answers) == {health_pb2.HealthCheckResponse.SERVING}
