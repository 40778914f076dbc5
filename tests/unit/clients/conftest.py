"""Scripted servers and either kind of client to call them with."""

import contextlib

import pytest
from free_ports import free_address
from scripted_servers import REWARD, Script, call_async, call_sync
from scripted_streams import Streams, score_many_async, score_many_sync


@pytest.fixture
def serve():
    """serve(service descriptor, {method: behaviours}, **how) → a Script that runs."""
    with contextlib.ExitStack() as stack:

        def start(service, behaviours, **how):
            script = Script({method: list(steps) for method, steps in behaviours.items()}).start(
                service, **how
            )
            stack.callback(script.stop)
            return script

        yield start


@pytest.fixture
def serve_reward(serve):
    """serve_reward(*behaviours of Score) → a Script that runs."""
    return lambda *behaviours, **how: serve(REWARD, {"Score": behaviours}, **how)


@pytest.fixture
def serve_streams(serve):
    """serve_streams(*behaviours, one per stream; the last one again and again) → a Script that runs."""
    return lambda *behaviours, **how: serve(REWARD, {"ScoreStream": behaviours}, **how)


@pytest.fixture(params=[call_sync, call_async], ids=["sync", "async"])
def call(request):
    """call("reward", address, "score", …, client={…}), blocking, through either kind of client."""
    return request.param


@pytest.fixture
def score(call):
    """score(address, client={…}, timeout=…): the scores of one pair."""

    def ask(address, **named):
        return call("reward", address, "score", [("the film", " is good")], **named)

    return ask


@pytest.fixture
def streams():
    """Behaviours of ScoreStream, and what they heard."""
    made = Streams()
    yield made
    made.over.set()


@pytest.fixture(params=[score_many_sync, score_many_async], ids=["sync", "async"])
def score_many(request):
    """score_many(address, items, client={…}, …), a generator, through either kind of client."""
    return request.param


@pytest.fixture
def unused_address():
    """An address where nobody listens."""
    return free_address()
