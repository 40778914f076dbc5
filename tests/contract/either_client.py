"""Sync and async clients behind the same calls, so that one test asks both."""

import asyncio
import inspect


class Blocking:
    """An async client with the methods of a sync one."""

    def __init__(self, client):
        self._client = client
        self._runner = asyncio.Runner()

    def __getattr__(self, name):
        method = getattr(self._client, name)
        if not inspect.iscoroutinefunction(method):
            return method
        return lambda *arguments, **named: self._runner.run(method(*arguments, **named))

    def score_many(self, *arguments, **named):
        """What the async generator gives, one by one; it is closed with this one."""
        results = self._client.score_many(*arguments, **named)

        async def following():
            return await anext(results)

        try:
            while True:
                yield self._runner.run(following())
        except StopAsyncIteration:
            pass
        finally:
            self._runner.run(results.aclose())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._runner.run(self._client.close())
        self._runner.close()
