"""Run by test_clock_jumps.py as clock_jumps.py is: the wall clock is set between the pieces of a push."""

import itertools

from clock_jumps import HOUR, set_clock
from push_steps import Eventful, Step

from plaudit import WeightsClient
from plaudit.clients import upload
from services.policy.service import policy_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions


def test_a_push_does_not_expire(tiny_policy, monkeypatch):
    monkeypatch.setattr(upload, "CHUNK_BYTES", 10_000)
    step, jumps = Step(tiny_policy), itertools.cycle([HOUR, 0, -HOUR, 0])
    cut = []
    pieces = Eventful(step.pieces(10_000), lambda number: cut.append(set_clock(next(jumps))))
    options = ModelOptions(str(tiny_policy), "cpu", "float32", 1)
    with (
        serve_in_background(lambda: policy_service(options)) as server,
        WeightsClient(server.address) as client,
    ):
        assert client.push(step.manifest(), pieces).step == 1
    assert len(cut) > 10
