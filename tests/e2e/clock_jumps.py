"""Run by test_clock_jumps.py under libfaketime: the wall clock is set an hour ahead, and an hour back again.

It is set while calls and pushes are under way. The monotonic clock, by which all waits end, goes on.
"""

import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from chaos_proxy import BLACK_HOLE, NONE, ChaosProxy
from guarded_servers import entry, served, trainer_service, write_tokens
from push_steps import Eventful, Step

from plaudit import DeadlineExceeded, Overloaded, TrainerClient, Unauthenticated, WeightsClient
from plaudit.clients import upload
from services.policy.service import policy_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions

HOUR, SOON, LONG = 3600, 0.3, 20.0
JUMPS = [HOUR, -HOUR]


class WallClock:
    """The clock of this process, which can be set."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._next = itertools.cycle([HOUR, 0, -HOUR, 0])
        self.jumps = 0

    def set(self, seconds: int) -> None:
        """Ahead of the machine's."""
        new = self._path.with_suffix(".new")
        new.write_text(f"{seconds:+d}")
        new.replace(self._path)

    def jump(self) -> None:
        """An hour ahead, back, behind and back again, in turn."""
        with self._lock:
            self.jumps += 1
            self.set(next(self._next))


@pytest.fixture
def clock():
    clock = WallClock(Path(os.environ["FAKETIME_TIMESTAMP_FILE"]))
    yield clock
    clock.set(0)


def serving(make, folder):
    return serve_in_background(lambda: make(ModelOptions(str(folder), "cpu", "float32", 1)))


@pytest.fixture(scope="module")
def policy(tiny_policy):
    with serving(policy_service, tiny_policy) as server:
        yield server.address


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """The address of a server with tokens of three kinds."""
    soon = datetime.now(UTC) + timedelta(seconds=HOUR / 2)
    entries = [
        entry("half-an-hour", "trainer:read", name="half-an-hour", expires=soon),
        entry("seldom", "trainer:read", name="seldom", requests_per_second=0.0001),
        entry("often", "trainer:read", name="often", requests_per_second=1000),
    ]
    tokens = write_tokens(tmp_path_factory.mktemp("guarded") / "tokens.toml", *entries)
    with served(trainer_service, tokens) as server:
        yield server.address


def times():
    return time.monotonic(), time.time(), datetime.now(UTC).timestamp()


@pytest.mark.parametrize("jump", JUMPS)
def test_the_clock_is_one_that_jumps(clock, jump):
    first = times()
    clock.set(jump)
    passed = [after - before for before, after in zip(first, times(), strict=True)]
    assert passed == pytest.approx([0, jump, jump], abs=60)


@pytest.mark.parametrize("jump", JUMPS)
def test_a_deadline_comes_neither_sooner_nor_later(clock, guarded, jump):
    with (
        ChaosProxy(guarded) as proxy,
        TrainerClient(proxy.address, token="often") as client,
        ThreadPoolExecutor() as pool,
    ):
        client.get_run(timeout=LONG)
        proxy.suffer(BLACK_HOLE)
        began, passed = time.monotonic(), proxy.passed
        call = pool.submit(client.get_run, timeout=SOON)
        while proxy.passed == passed and not call.done():  # no time.sleep: libfaketime breaks it
            pass
        clock.set(jump)
        with pytest.raises(DeadlineExceeded):
            call.result()
        assert SOON * 0.9 < time.monotonic() - began < SOON + 10
        proxy.suffer(NONE)
        assert client.get_run(timeout=LONG).run_id == "a-run"


def test_a_push_does_not_expire(clock, policy, tiny_policy, monkeypatch):
    monkeypatch.setattr(upload, "CHUNK_BYTES", 10_000)
    step = Step(tiny_policy)
    pieces = Eventful(step.pieces(10_000), lambda number: clock.jump())
    with WeightsClient(policy) as client:
        assert client.push(step.manifest(), pieces).step == 1
    assert clock.jumps > 10


def test_a_token_is_good_until_its_hour_and_no_longer(clock, guarded):
    """Here the wall clock is what is meant."""
    with TrainerClient(guarded, token="half-an-hour") as client:
        client.get_run(timeout=LONG)
        clock.set(HOUR)
        with pytest.raises(Unauthenticated):
            client.get_run(timeout=LONG)
        clock.set(-HOUR)
        client.get_run(timeout=LONG)


def test_a_quota_neither_fills_up_nor_runs_dry(clock, guarded):
    with TrainerClient(guarded, token="seldom") as seldom, TrainerClient(guarded, token="often") as often:
        seldom.get_run(timeout=LONG)
        for jump in JUMPS:
            clock.set(jump)
            with pytest.raises(Overloaded):
                seldom.get_run(timeout=SOON)
            often.get_run(timeout=LONG)
