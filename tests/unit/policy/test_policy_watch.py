"""Watching the version: at once, then each change; the newest for the slow; an end when the server drains."""

import asyncio
from contextlib import aclosing

import pytest

from services.errors import NotServing, Overloaded
from services.policy.interface import Version
from services.policy.watch import VersionWatchers

ZERO, ONE, TWO, THREE = (Version("run", step, "") for step in range(4))


class Served:
    """A version that changes, and who watches it."""

    def __init__(self, **options):
        self.watchers = VersionWatchers(**options)
        self.closing = asyncio.Event()
        self.version = ZERO

    def watch(self):
        return aclosing(self.watchers.versions(lambda: self.version, self.closing))

    def change(self, version):
        self.version = version
        self.watchers.wake()


async def test_what_is_there_then_each_change():
    served = Served()
    async with served.watch() as first, served.watch() as second:
        assert [await anext(first), await anext(second)] == [ZERO, ZERO]
        for version in (ONE, TWO):
            waiting = asyncio.create_task(anext(first))
            await asyncio.sleep(0)
            served.change(version)
            assert await waiting == await anext(second) == version


async def test_the_slow_get_the_newest_only():
    served = Served()
    async with served.watch() as versions:
        await anext(versions)
        for version in (ONE, TWO, THREE):
            served.change(version)
        assert await anext(versions) == THREE


async def test_a_change_to_the_same_is_none():
    served = Served()
    async with served.watch() as versions:
        await anext(versions)
        waiting = asyncio.create_task(anext(versions))
        served.watchers.wake()
        await asyncio.sleep(0)
        assert not waiting.done()
        served.change(ONE)
        assert await waiting == ONE


@pytest.mark.parametrize("has_waited", [True, False])
async def test_it_ends_when_the_server_drains(has_waited):
    served = Served()
    async with served.watch() as versions:
        await anext(versions)
        waiting = asyncio.create_task(anext(versions))
        if has_waited:
            await asyncio.sleep(0)
        served.closing.set()
        with pytest.raises(NotServing, match="shutting down"):
            await waiting


async def test_no_more_than_so_many_watch():
    served = Served(most=1)
    async with served.watch() as first:
        await anext(first)
        async with served.watch() as second:
            with pytest.raises(Overloaded, match="1 watch the version already") as refused:
                await anext(second)
    assert refused.value.retry_after == 5
    async with served.watch() as third:
        assert await anext(third) == ZERO
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1, "nothing of the watchers is left"
