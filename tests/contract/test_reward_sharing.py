"""One queue for all callers: turns by name, the same content once, and calls whose bits nobody can change."""

import asyncio
import threading

import pytest
from reward_server import options, pair, serving

from plaudit.v1 import reward_pb2
from services.reward.engine import RewardEngine
from services.reward.items import Pair
from services.reward.service import reward_service
from services.rpc.command import ModelOptions

DETERMINISTIC = reward_pb2.ScoreOptions(deterministic=True)


class Noting:
    """The real engine; scores only while open, and keeps what it was given."""

    def __init__(self, folder, token_budget):
        self._engine = RewardEngine(str(folder), dtype="float32", threads=1)
        self.facts, self.encode = self._engine.facts, self._engine.encode
        self.token_budget = token_budget
        self.opened, self.begun = threading.Event(), threading.Event()
        self.batches = []

    def score(self, batch):
        self.begun.set()
        self.opened.wait()
        self.batches.append(list(batch))
        return self._engine.score(batch)


@pytest.fixture
async def client(tiny_reward):
    engine = Noting(tiny_reward, token_budget=64)
    service = reward_service(ModelOptions("m"), load_engine=lambda _: engine)
    async for made in serving(service):
        made.engine = engine
        yield made
        engine.opened.set()


async def score(client, *items, caller="", **fields):
    metadata = (("x-plaudit-caller", caller),) if caller else ()
    request = reward_pb2.ScoreRequest(items=items, options=reward_pb2.ScoreOptions(**fields))
    return (await client.stub.Score(request, metadata=metadata, timeout=30)).results


async def waiting(client, count):
    async with asyncio.timeout(20):
        while (await client.model()).queue.items < count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def long(*names):
    """Items of about half a batch each."""
    return [pair("the film", f" is {name} {'good ' * 20}") for name in names]


async def test_items_of_several_callers_share_a_batch(client):
    first = asyncio.create_task(score(client, pair("a", " first")))
    assert await asyncio.to_thread(client.engine.begun.wait, 30), "no later one overtakes it"
    items = [pair("a", f" {letter}") for letter in "bcdefg"]
    calls = [asyncio.create_task(score(client, item, caller=f"c{n}")) for n, item in enumerate(items)]
    await waiting(client, 7)
    client.engine.opened.set()
    await asyncio.gather(first, *calls)
    assert [len(batch) for batch in client.engine.batches] == [1, 6]


async def test_the_same_content_is_computed_once_whoever_asks(client):
    calls = [asyncio.create_task(score(client, *long("it", "he"), caller=f"c{n}")) for n in range(4)]
    await waiting(client, 8)
    client.engine.opened.set()
    answers = await asyncio.gather(*calls)
    assert sum(map(len, client.engine.batches)) == 2
    assert all(list(answer) == list(answers[0]) for answer in answers)


async def test_the_same_text_in_one_call_is_computed_once_and_answered_twice(client):
    client.engine.opened.set()
    results = await score(client, pair("a", "b"), pair("a", "c"), pair("a", "b"))
    assert results[0] == results[2]
    assert sum(map(len, client.engine.batches)) == 2


async def test_callers_take_turns_by_name(client):
    finished = []

    async def ask(caller, *items, **fields):
        await score(client, *items, caller=caller, **fields)
        finished.append(caller)

    bulk = [asyncio.create_task(ask("bulk", *long(*"abcdefgh")))]
    await waiting(client, 8)
    bulk += [asyncio.create_task(ask("bulk", *long(*"ijklmnop")))]
    await waiting(client, 16)
    single = asyncio.create_task(ask("single", *long("z")))
    await waiting(client, 17)
    client.engine.opened.set()
    await asyncio.gather(single, *bulk)
    assert finished[0] == "single"


async def test_a_higher_priority_is_served_sooner(client):
    finished = []

    async def ask(caller, priority, names):
        await score(client, *long(*names), caller=caller, priority=priority)
        finished.append(caller)

    low = asyncio.create_task(ask("low", reward_pb2.PRIORITY_LOW, "abcdefgh"))
    await waiting(client, 8)
    high = asyncio.create_task(ask("high", reward_pb2.PRIORITY_HIGH, "ijklmnop"))
    await waiting(client, 16)
    client.engine.opened.set()
    await asyncio.gather(low, high)
    assert finished == ["high", "low"]


async def test_a_deterministic_call_is_never_mixed(client):
    others = [asyncio.create_task(score(client, pair("a", f" {letter}"), caller=letter)) for letter in "bcd"]
    await waiting(client, 3)
    alone = asyncio.create_task(score(client, pair("a", " e"), pair("a", " b"), deterministic=True))
    await waiting(client, 5)
    client.engine.opened.set()
    await asyncio.gather(alone, *others)
    mine = [client.engine.encode(Pair("a", response), "x") for response in (" e", " b")]
    assert [sorted(batch, key=str) for batch in client.engine.batches if mine[0] in batch] == [
        sorted(mine, key=str)
    ]


async def test_a_deterministic_call_has_the_same_bits_alone_and_under_load(tiny_reward):
    items = [pair("the film", " is good" * n) for n in range(1, 8)]
    async for client in serving(reward_service(options(tiny_reward))):
        alone = await client.score(*items, options=DETERMINISTIC)
        noise = [
            asyncio.create_task(client.score(*(pair("b", " bad" * (n % m + 1)) for n in range(20))))
            for m in range(1, 12)
        ]
        loaded = [await client.score(*items, options=DETERMINISTIC) for _ in range(5)]
        await asyncio.gather(*noise)
        for response in loaded:
            assert list(response.results) == list(alone.results)


async def test_results_are_kept_where_the_file_says_so(tmp_path, tiny_reward):
    file = tmp_path / "models.toml"
    file.write_text('[[models]]\nname = "m"\npath = "p"\ncache_items = 3\n', encoding="utf-8")
    engine = Noting(tiny_reward, token_budget=64)
    engine.opened.set()
    async for client in serving(reward_service(ModelOptions(str(file)), load_engine=lambda _: engine)):
        first = await score(client, pair("a", "b"))
        assert list(await score(client, pair("a", "b"))) == list(first)
        assert sum(map(len, engine.batches)) == 1
        await score(client, pair("a", "b"), deterministic=True)
        assert sum(map(len, engine.batches)) == 2
