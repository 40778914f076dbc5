"""From sequences to log-probabilities: batch by length, compute; asyncio, without gRPC and protos."""

import math
from collections.abc import Callable, Sequence

from services.batching import Batcher, Caller, CallLimits, room_for
from services.compute import ComputeThread
from services.reference.items import Engine, Item, ModelFacts


class ReferenceDataPlane:
    """Owns the engine and the thread that uses it."""

    def __init__(self, load_engine: Callable[[], Engine], limits: CallLimits) -> None:
        self.limits = limits
        self._load_engine = load_engine
        self._computing = ComputeThread("reference-compute")
        self._engine: Engine
        self.batcher: Batcher[Item, list[float]]

    @property
    def facts(self) -> ModelFacts:
        """The loaded model."""
        return self._engine.facts

    async def load(self) -> None:
        """Loads the engine in the compute thread; raises what loading raises."""
        self._engine = await self._computing.run(self._load_engine)
        self.batcher = Batcher(
            self._run_batch,
            token_budget=self._engine.token_budget,
            room=room_for(self.limits),
        )

    async def close(self) -> None:
        """Ends the thread."""
        await self._computing.close()

    def admit(self, items: int, size: int, caller: Caller) -> None:
        """Decides about a call before any of its work. Raises Overloaded, as Room.admit does."""
        self.batcher.room.admit(min(items, self.limits.max_items), size, caller.who, caller.deadline)

    async def logprobs(self, items: Sequence[Item], caller: Caller, size: int) -> list[list[float]]:
        """One list per item, of one call of `size` bytes: they share a temperature.

        Raises Overloaded, TooLate, and ArithmeticError where the model's output is no number.
        """
        rows = await self.batcher.submit(items, [len(item.ids) for item in items], caller, size)
        for index, row in enumerate(rows):
            if not all(map(math.isfinite, row)):
                raise ArithmeticError(f"log-probabilities of sequence {index} are not finite")
        return rows

    async def _run_batch(self, items: Sequence[Item], deadline: float | None) -> list[list[float]]:
        return await self._computing.run(self._engine.logprobs, list(items), deadline=deadline)
