"""Engines that are closed when the test ends, and who pushes to them."""

import pytest
from policy_bench import Bench, Trainer

from services.policy.weights import Pushes


@pytest.fixture
async def bench(tiny_policy):
    bench = Bench(tiny_policy)
    yield bench
    await bench.close()


@pytest.fixture
async def make_bench(tiny_policy):
    made = []

    def make(**options):
        made.append(Bench(tiny_policy, **options))
        return made[-1]

    yield make
    for bench in made:
        await bench.close()


@pytest.fixture
def pushes(bench):
    return Pushes(bench.engine, bench.metrics)


@pytest.fixture
def trainer(bench):
    return Trainer(bench)
