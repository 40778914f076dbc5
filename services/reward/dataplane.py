"""From items to scores: tokenise, batch by length, score; asyncio, without gRPC and protos."""

import math
from collections.abc import Callable, Sequence

from lm.errors import InputError
from services.batching import WAITING_CALLS, Batcher, CallLimits
from services.compute import ComputeThread
from services.errors import InvalidInput, ServiceError
from services.reward.items import Engine, Item, ModelFacts, Score, ScoreNotFinite

Outcome = Score | InputError | ServiceError | ScoreNotFinite
"""What becomes of one item."""


class RewardDataPlane:
    """Owns the engine and the two threads that use it: one tokenises, one computes."""

    def __init__(self, load_engine: Callable[[], Engine], limits: CallLimits) -> None:
        self.limits = limits
        self._load_engine = load_engine
        self._tokenizing = ComputeThread("reward-tokenizer")
        self._computing = ComputeThread("reward-compute")
        self._engine: Engine
        self.batcher: Batcher[list[int], float]

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
            max_items=WAITING_CALLS * self.limits.max_items,
            max_tokens=WAITING_CALLS * self.limits.max_tokens,
        )

    async def close(self) -> None:
        """Ends the threads."""
        await self._tokenizing.close()
        await self._computing.close()

    async def score(
        self, items: Sequence[Item | InvalidInput], deadline: float | None = None
    ) -> list[Outcome]:
        """One outcome per item, in order; an item that came as an error stays one.

        Raises InvalidInput if the items have too many tokens together, Overloaded, TooLate.
        """
        encoded = await self._tokenizing.run(self._encode_all, items, deadline=deadline)
        sequences = [ids for ids in encoded if isinstance(ids, list)]
        lengths = [len(ids) for ids in sequences]
        if sum(lengths) > self.limits.max_tokens:
            raise InvalidInput.at(
                "items", f"hold {sum(lengths)} tokens, a call at most {self.limits.max_tokens}; split it"
            )
        scores = iter(await self.batcher.submit(sequences, lengths, deadline))
        return [self._outcome(ids, next(scores)) if isinstance(ids, list) else ids for ids in encoded]

    async def _run_batch(self, sequences: Sequence[list[int]], deadline: float | None) -> list[float]:
        return await self._computing.run(self._engine.score, list(sequences), deadline=deadline)

    def _encode_all(
        self, items: Sequence[Item | InvalidInput]
    ) -> list[list[int] | InputError | InvalidInput]:
        return [self._encode(item, f"items[{index}]") for index, item in enumerate(items)]

    def _encode(self, item: Item | InvalidInput, field: str) -> list[int] | InputError | InvalidInput:
        if isinstance(item, InvalidInput):
            return item
        try:
            return self._engine.encode(item, field)
        except InputError as error:
            return error

    def _outcome(self, ids: list[int], raw: float) -> Score | ScoreNotFinite:
        facts = self.facts
        reward = (raw - facts.reward_mean) / facts.reward_std
        if not math.isfinite(reward):
            return ScoreNotFinite(f"the model's score is {raw}; there is no reward for this item")
        return Score(raw, reward, len(ids))
