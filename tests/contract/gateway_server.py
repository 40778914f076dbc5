"""A gateway in front of a reward service, both in threads of their own, and an engine that tests can hold."""

import asyncio
import contextlib
import threading
import time
from concurrent.futures import Future

import httpx

from services.gateway.server import start_gateway
from services.reward.engine import RewardEngine
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions


def options(folder):
    return ModelOptions(str(folder), dtype="float32", threads=1)


@contextlib.contextmanager
def gateway_in_background(*addresses, gateway_options=None):
    """The running Gateway; of it only `address` and, through `call_soon`, `ask_to_stop` are safe here."""
    started = Future()

    async def run():
        async with start_gateway(addresses, gateway_options) as gateway:
            stop = asyncio.Event()
            started.set_result((gateway, asyncio.get_running_loop(), stop))
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    gateway, loop, stop = started.result(10)
    gateway.call_soon = loop.call_soon_threadsafe
    try:
        yield gateway
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive()


@contextlib.contextmanager
def client_of(*addresses, **how):
    """An httpx client of a gateway in front of the reward services at `addresses`."""
    with gateway_in_background(*addresses, **how) as gateway, http_client(gateway) as client:
        yield client


def http_client(gateway, **how):
    return httpx.Client(base_url=f"http://{gateway.address}", timeout=30, **how)


class Held:
    """The real engine, which scores only while a test lets it."""

    def __init__(self, folder):
        self._engine = RewardEngine(str(folder), dtype="float32", threads=1)
        self.facts, self.token_budget = self._engine.facts, self._engine.token_budget
        self.encode = self._engine.encode
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.fails = False

    def score(self, batch):
        self.begun.set()
        assert self.go_on.wait(60)
        if self.fails:
            raise RuntimeError("out of memory at 0x7f")
        return self._engine.score(batch)


class HeldReward:
    """A reward service on a Held engine."""

    def __init__(self, engine, service, server):
        self.engine = engine
        self.address = server.address
        self._sample = service.metrics.registry.get_sample_value

    @property
    def waiting(self):
        return self._sample("plaudit_reward_waiting_items", {"model": "reward"})


@contextlib.contextmanager
def held_reward(folder, limits=None):
    """Whatever is still held at the end is let go."""
    engine = Held(folder)
    service = reward_service(ModelOptions("held"), limits, lambda _: engine)
    with serve_in_background(lambda: service) as server:
        try:
            yield HeldReward(engine, service, server)
        finally:
            engine.go_on.set()


def wait_until(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be so"
        time.sleep(0.005)


def fields(response):
    """The fields that a problem names."""
    assert response.headers["content-type"] == "application/problem+json"
    return [violation["field"] for violation in response.json()["violations"]]
