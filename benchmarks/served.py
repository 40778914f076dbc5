"""Contestants that have the model in a process of its own: ours over gRPC, OpenRLHF's over HTTP."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.workload import Text
from plaudit.clients import ItemFailure, Reward, RewardClient
from services.local import LocalService, local_services

CALL_ITEMS, CALLS_IN_FLIGHT = 64, 8
QUERIES_IN_FLIGHT = 32
TIMEOUT_S = 600.0
READY_S = 120.0


class Streamed:
    """Ours, one stream."""

    name = "Plaudit over gRPC, score_many"
    note = "one ScoreStream with its default window of 512 items"

    def __init__(self, address: str) -> None:
        self._client = RewardClient(address, timeout=TIMEOUT_S)

    def score(self, texts: Sequence[Text]) -> list[float]:
        """As Contestant.score."""
        return [raw(result) for result in self._client.score_many(pairs(texts))]


class Unary:
    """Ours, many calls at once."""

    name = f"Plaudit over gRPC, calls of {CALL_ITEMS}"
    note = f"Score with {CALLS_IN_FLIGHT} calls in flight"

    def __init__(self, address: str) -> None:
        self._client = RewardClient(address, timeout=TIMEOUT_S)

    def score(self, texts: Sequence[Text]) -> list[float]:
        """As Contestant.score."""
        calls = [texts[begin : begin + CALL_ITEMS] for begin in range(0, len(texts), CALL_ITEMS)]
        with ThreadPoolExecutor(CALLS_IN_FLIGHT) as pool:
            answers = list(pool.map(lambda call: self._client.score(pairs(call)), calls))
        return [raw(result) for answer in answers for result in answer]


class OpenRlhfList:
    """OpenRLHF's server, asked once for the whole list."""

    note = "the whole list in one call, batched by the server as in its example script"

    def __init__(self, url: str, batch_size: int) -> None:
        self._url = url
        self.name = f"OpenRLHF-style FastAPI, --batch_size {batch_size}"

    def score(self, texts: Sequence[Text]) -> list[float]:
        """As Contestant.score."""
        wanted = [text.whole for text in texts]
        prompts, labels = [text.prompt for text in texts], [""] * len(texts)
        payload = {"query": wanted, "prompts": prompts, "labels": labels}
        response = httpx.post(self._url, json=payload, timeout=TIMEOUT_S, trust_env=False).raise_for_status()
        return [float(reward) for reward in response.json()["rewards"]]


class OpenRlhfCalls:
    """OpenRLHF's server, asked as its trainer does: one query a call, many calls at once."""

    name = "OpenRLHF-style FastAPI, a call a text"
    note = f"as its trainer (0.11.2) asks, {QUERIES_IN_FLIGHT} calls in flight"

    def __init__(self, url: str) -> None:
        self._url = url

    def score(self, texts: Sequence[Text]) -> list[float]:
        """As Contestant.score."""
        return asyncio.run(self._score(texts))

    async def _score(self, texts: Sequence[Text]) -> list[float]:
        turns = asyncio.Semaphore(QUERIES_IN_FLIGHT)
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:

            async def ask(text: Text) -> float:
                payload = {"query": [text.whole], "prompts": [text.prompt], "labels": [""]}
                async with turns:
                    response = (await client.post(self._url, json=payload)).raise_for_status()
                return float(response.json()["rewards"][0])

            return await asyncio.gather(*map(ask, texts))


def pairs(texts: Sequence[Text]) -> list[tuple[str, str]]:
    """What our clients send."""
    return [(text.prompt, text.response) for text in texts]


def raw(result: Reward | ItemFailure) -> float:
    """The model's output as it is; a text without one ends the benchmark."""
    if isinstance(result, ItemFailure):
        raise RuntimeError(f"a text has no score: {result.message}")
    return result.raw_reward


@contextmanager
def plaudit_server(model_id: str, dtype: str, threads: int, logs: Path) -> Iterator[str]:
    """host:port of `python -m services.reward` in a process of its own."""
    options = ("--device", "cpu", "--dtype", dtype, "--threads", str(threads))
    with local_services([LocalService("reward", model_id, options=options)], logs) as running:
        yield running["reward"].address


@contextmanager
def openrlhf_server(model_id: str, dtype: str, threads: int, batch_size: int, logs: Path) -> Iterator[str]:
    """The URL of benchmarks.openrlhf_server in a process of its own."""
    command = [
        sys.executable, "-m", "benchmarks.openrlhf_server", "--model", model_id, "--dtype", dtype,
        "--threads", str(threads), "--batch-size", str(batch_size),
    ]  # fmt: skip
    path = logs / "openrlhf.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
    late = threading.Timer(READY_S, process.kill)
    late.start()
    with process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            late.cancel()
            if not line.startswith("listening on "):
                raise RuntimeError(f"the OpenRLHF-style server didn't start:\n{path.read_text()}")
            yield f"http://{line.split()[-1]}/get_reward"
        finally:
            process.kill()
