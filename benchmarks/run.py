"""One run of the benchmark: contestants, rounds, latencies, padding."""

import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.contestant import Contestant
from benchmarks.inprocess import CrossEncoder, PaddedLoop, Pipeline, SortedLoop, load_peer, reader
from benchmarks.latency import measure_overhead, measure_under_load
from benchmarks.measures import in_turn, largest_difference, padding_share
from benchmarks.padding import streamed_padding_share
from benchmarks.results import Overhead, Padding, Passes, Results, Settings
from benchmarks.served import (
    OpenRlhfCalls,
    OpenRlhfList,
    Streamed,
    Unary,
    openrlhf_server,
    plaudit_server,
)
from benchmarks.workload import Text, make_texts
from plaudit.clients import RewardClient
from services.plans import plan_batches
from services.reward.engine import RewardEngine

OVERHEAD_TEXTS = 40
"""Single items a round."""

Say = Callable[[str], None]


def measure(settings: Settings, sentences: Sequence[str], say: Say) -> Results:
    """Everything the tables need; `say` hears how far it is.

    Raises WorkloadError, ModelLoadError, ServiceFailed, and RuntimeError for a contestant that fails.
    """
    torch.set_num_threads(settings.threads)
    model_id, dtype, threads, size = settings.model, settings.dtype, settings.threads, settings.batch_size
    engine = RewardEngine(model_id, "cpu", dtype, threads)
    model, tokenizer = load_peer(model_id, dtype)
    texts = make_texts(sentences, settings.texts, settings.seed, reader(engine, tokenizer))
    with (
        TemporaryDirectory() as folder,
        plaudit_server(model_id, dtype, threads, Path(folder)) as address,
        openrlhf_server(model_id, dtype, threads, size, Path(folder)) as url,
    ):
        contestants = (
            SortedLoop(engine, tokenizer),
            PaddedLoop(model, tokenizer, size),
            Streamed(address),
            Unary(address),
            Pipeline(model, tokenizer),
            CrossEncoder(model_id, dtype),
            OpenRlhfList(url, size),
            OpenRlhfCalls(url),
        )
        passes = run_rounds(contestants, texts, settings.rounds, say)
        overheads = _overheads(engine, address, texts[:OVERHEAD_TEXTS], settings.rounds, say)
        say(f"{settings.singles} single items beside a full stream")
        singles = list(islice(cycle(texts), settings.singles))
        under_load = measure_under_load(address, texts, singles)
    say("padding")
    lengths = [len(text.ids) for text in texts]
    padding = Padding(
        streamed_padding_share(engine, texts),
        padding_share(lengths, plan_batches(lengths, engine.token_budget)),
        padding_share(lengths, _as_they_come(len(texts), size)),
    )
    return Results(settings, lengths, passes, padding, overheads, under_load)


def run_rounds(
    contestants: Sequence[Contestant], texts: Sequence[Text], rounds: int, say: Say
) -> list[Passes]:
    """Every contestant once a round over all texts, after a warm-up; differences are to the first one."""
    seconds: dict[str, list[float]] = {one.name: [] for one in contestants}
    scores: dict[str, list[float]] = {}
    for one in contestants:
        one.score(texts[:OVERHEAD_TEXTS])
    for number, order in enumerate(in_turn(contestants, rounds), start=1):
        for one in order:
            began = time.perf_counter()
            scores[one.name] = one.score(texts)
            seconds[one.name].append(time.perf_counter() - began)
            say(f"round {number} of {rounds}: {one.name}, {len(texts) / seconds[one.name][-1]:.1f} texts/s")
    first = scores[contestants[0].name]
    return [
        Passes(one.name, one.note, tuple(seconds[one.name]), largest_difference(scores[one.name], first))
        for one in contestants
    ]


def _overheads(
    engine: RewardEngine, address: str, texts: Sequence[Text], rounds: int, say: Say
) -> list[Overhead]:
    with RewardClient(address) as client:
        measure_overhead(engine, client, texts[:4])  # a warm-up
        found = []
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}: {len(texts)} single items, bare and by a call")
            found.append(measure_overhead(engine, client, texts))
    return found


def _as_they_come(count: int, size: int) -> list[range]:
    return [range(begin, min(begin + size, count)) for begin in range(0, count, size)]
