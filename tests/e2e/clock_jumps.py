"""Run by test_clock_jumps.py under libfaketime: the wall clock is set an hour ahead, and an hour back again.

It is set while calls, pushes and steps are under way. The monotonic clock, by which all waits end, goes on.
"""

import itertools
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from chaos_proxy import BLACK_HOLE, NONE, ChaosProxy
from guarded_servers import entry, served, trainer_service, write_tokens
from killed_runs import CONFIG, PROMPTS, before, digest
from push_steps import Eventful, Step

from plaudit import DeadlineExceeded, Overloaded, TrainerClient, Unauthenticated, WeightsClient
from plaudit.clients import upload
from services.policy.service import policy_service
from services.reference.service import reference_service
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from trainer.__main__ import main
from trainer.metrics_file import read_lines
from trainer.ppo import products

HOUR, SOON, LONG = 3600, 0.3, 20.0
JUMPS = [HOUR, -HOUR]
MOMENTS = [
    "trainer.ppo.run:PPORun._take_step",
    "trainer.checkpoints:sync",
    "plaudit.clients:WeightsClient.commit",
    "services.policy.engine:TorchEngine.submit",
    "services.policy.weights:Pushes.commit",
    "services.reward.engine:RewardEngine.score",
]
"""Before each call of these the clock of the run is set."""

thorough = pytest.mark.skipif("PLAUDIT_CLOCK" not in os.environ, reason="takes long; set PLAUDIT_CLOCK=1")


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


@thorough
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


@thorough
def test_a_run_is_the_same_and_its_times_are_those_that_passed(
    clock, policy, tiny_policy, tiny_reward, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        products, "build_report", lambda *_, **__: None
    )  # its curves take two seconds to draw
    text = "\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS)
    for file in ("prompts", "heldout"):
        (tmp_path / f"{file}.jsonl").write_text(text)
    with serving(reward_service, tiny_reward) as reward, serving(reference_service, tiny_policy) as reference:
        at = {"policy_0_at": policy, "reward_at": reward.address, "reference_at": reference.address}
        config = CONFIG.format(folder=tmp_path, policy=tiny_policy, reward=tiny_reward, longest=LONG, **at)
        (tmp_path / "ppo.toml").write_text(config)
        expected = run(tmp_path, "calm")
        for moment in MOMENTS:
            before(moment, clock.jump)
        began = time.monotonic()
        assert run(tmp_path, "jumps") == expected
        passed = time.monotonic() - began
    lines = read_lines(tmp_path / "jumps" / "run" / "metrics.jsonl")
    assert clock.jumps > 20
    assert 0 < sum(line.get("seconds_per_step", 0.0) for line in lines) < passed
    assert max(line["time"] for line in lines) - min(line["time"] for line in lines) > HOUR / 2, "it was set"


def run(folder, name):
    """Two steps, and what is left of them."""
    settings = [f"run.directory={folder / name}", "ppo.total_episodes=12", "evaluation.limit=1"]
    assert (
        main(["ppo", str(folder / "ppo.toml"), *(part for each in settings for part in ("--set", each))]) == 0
    )
    return digest(folder / name / "run")
