"""A name that stands for many replicas: one that fails or hangs is left out for a while, and comes back."""

import contextlib
import threading
import time

import grpc
import pytest
from scripted_servers import SCORED, refuse

from plaudit import DeadlineExceeded, RewardClient, Unavailable
from plaudit.clients import channel

AWAY = refuse(grpc.StatusCode.UNAVAILABLE, "away", pushback_ms=-1)
PAIR = [("the film", " is good")]
A_ROUND = 10


def hang(_, context):
    """A behaviour: no answer as long as somebody waits for it."""
    gone = threading.Event()
    context.add_callback(gone.set)
    gone.wait(30)


class Moody:
    """A behaviour that can be changed; counts the good answers."""

    def __init__(self, mood):
        self.mood, self.answers = mood, 0

    def __call__(self, request, context):
        if self.mood is not SCORED:
            return self.mood(request, context)
        self.answers += 1
        return SCORED


@pytest.fixture
def connect(monkeypatch):
    """connect(servers) → a client for which one name stands for them all; it judges them quickly."""
    monkeypatch.setitem(channel.OUTLIERS, "interval", "0.2s")
    monkeypatch.setitem(channel.OUTLIERS, "baseEjectionTime", "0.2s")
    monkeypatch.setitem(channel.OUTLIERS["failurePercentageEjection"], "requestVolume", 2)
    monkeypatch.setattr(channel, "is_loopback", lambda _: True)
    with contextlib.ExitStack() as stack:

        def make(servers):
            target = "ipv4:" + ",".join(server.address for server in servers)
            monkeypatch.setattr(channel, "target_of", lambda _: target)
            return stack.enter_context(RewardClient("replicas:1", timeout=0.1))

        yield make


def answered(client):
    """How many of a round of calls were."""
    count = 0
    for _ in range(A_ROUND):
        with contextlib.suppress(Unavailable, DeadlineExceeded):
            client.score(PAIR)
            count += 1
    return count


def repeat_until(holds):
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end


@pytest.mark.parametrize("fault", [AWAY, hang], ids=["fails", "hangs"])
def test_one_that_fails_is_left_out_and_comes_back(serve_reward, connect, fault):
    moody = Moody(fault)
    bad = serve_reward(moody)
    client = connect([bad, serve_reward(SCORED), serve_reward(SCORED)])
    assert answered(client) < A_ROUND, "it has its turns at first"
    repeat_until(lambda: answered(client) == A_ROUND)
    moody.mood = SCORED
    repeat_until(lambda: answered(client) and moody.answers)


def test_never_all_are_left_out(serve_reward, connect):
    """A caller whose calls all fail, by its own fault or not, still hears why."""
    servers = [serve_reward(AWAY) for _ in range(2)]
    client = connect(servers)

    def hears_from_one_only():
        before = [len(server.heard) for server in servers]
        for _ in range(A_ROUND):
            with pytest.raises(Unavailable, match="away"):
                client.score(PAIR, timeout=30)
        heard = [len(server.heard) - count for server, count in zip(servers, before, strict=True)]
        assert sum(heard) == A_ROUND
        return 0 in heard

    repeat_until(hears_from_one_only)
