"""Run by test_clock_jumps.py under libfaketime: the wall clock is set an hour ahead, and an hour back again.

It is set while calls are under way. The monotonic clock, by which all waits end, goes on. Nothing here needs
torch, which takes longer to import than the rest to run.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from chaos_proxy import BLACK_HOLE, NONE, ChaosProxy
from guarded_servers import entry, served, trainer_service, write_tokens

from plaudit import DeadlineExceeded, Overloaded, TrainerClient, Unauthenticated

HOUR, SOON, LONG = 3600, 0.3, 20.0
JUMPS = [HOUR, -HOUR]


def set_clock(seconds):
    """Ahead of the machine's; libfaketime looks there each time it is asked."""
    os.environ["FAKETIME"] = f"{seconds:+d}"


@pytest.fixture
def clock():
    yield SimpleNamespace(set=set_clock)
    set_clock(0)


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
