"""One network with its queue: from items to scores; asyncio, without gRPC and protos."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence

from lm.errors import InputError
from services.batching import WAITING_CALLS, Batcher, Caller, CallLimits, Done, room_for
from services.bound import Bound
from services.compute import ComputeThread
from services.errors import InvalidInput
from services.reward.config import ModelSpec
from services.reward.interface import Answer, Combination, ComponentFacts, Options, Outcome, Pending, Timing
from services.reward.items import Component, Encoded, Engine, Item, ModelFacts, Score, ScoreNotFinite
from services.room import HasRoom

Outputs = tuple[float, ...]
"""What the network says of an item: one number per attribute."""
SLICE_ITEMS = 32
"""Items that are tokenised in one go."""


class PlainModel(HasRoom):
    """Owns an engine and the two threads that use it: one tokenises, one computes."""

    deviation_factor = 0.0

    def __init__(self, spec: ModelSpec, load_engine: Callable[[], Engine], limits: CallLimits) -> None:
        self.name = spec.name
        self.compare_temperature = spec.compare_temperature
        self._spec = spec
        self._limits = limits
        self.room = room_for(limits)
        self._load_engine = load_engine
        # As many calls as there may be items: the batcher's room bounds them.
        self._tokenizing = ComputeThread(f"{spec.name}-tokenizer", 2 * WAITING_CALLS * limits.max_items)
        self._computing = ComputeThread(f"{spec.name}-compute")
        self._engine: Engine
        self._weights: tuple[float, ...]
        self.batcher: Batcher[Encoded, Outputs]

    @property
    def facts(self) -> ModelFacts:
        """The loaded model."""
        return self._engine.facts

    @property
    def combination(self) -> Combination:
        """Attributes, where there are several, are summed by weight."""
        return "weighted_sum" if self.components else ""

    @property
    def components(self) -> tuple[ComponentFacts, ...]:
        """The attributes, where there are several."""
        names = self.facts.attributes
        if len(names) == 1:
            return ()
        return tuple(ComponentFacts(name, weight) for name, weight in zip(names, self._weights, strict=True))

    async def load(self) -> None:
        """Loads the engine in the compute thread; raises what loading raises, and InputError for weights."""
        self._engine = await self._computing.run(self._load_engine)
        self._weights = self._spec.attribute_weights(self.facts.attributes)
        self.batcher = Batcher(
            self._run_batch,
            token_budget=self._engine.token_budget,
            room=self.room,
            cache_items=self._spec.cache_items,
        )

    async def close(self) -> None:
        """Ends the threads."""
        await self._tokenizing.close()
        await self._computing.close()

    async def begin(
        self, items: Sequence[Item | InvalidInput], fields: Sequence[str], options: Options
    ) -> list[Pending]:
        """As RewardModel.begin."""
        since = time.perf_counter()
        # Else what waits to be tokenised would have no bound.
        with self.room.reserve(len(items), options.size, options.who):
            encoded = await self._tokenize(items, fields, options)
        seconds = time.perf_counter() - since
        sequences = [one for one in encoded if isinstance(one, Encoded)]
        futures, finish = iter(self._put(sequences, options)), self._answer

        def pending(one: Encoded | Outcome) -> Pending:
            if not isinstance(one, Encoded):
                return Pending.done(Answer(one, Timing(tokenize=seconds)))
            return Pending(next(futures), Bound(finish, one, seconds))

        return [pending(one) for one in encoded]

    def admit(self, items: int, options: Options) -> None:
        """As RewardModel.admit."""
        self.room.admit(items, options.size, options.who, options.deadline)

    async def wait_for_room(self, items: int, options: Options) -> None:
        """As RewardModel.wait_for_room."""
        await self.room.wait(items, options.size, options.who)

    async def _tokenize(
        self, items: Sequence[Item | InvalidInput], fields: Sequence[str], options: Options
    ) -> list[Encoded | InputError | InvalidInput]:
        """In slices, between which other calls have their turns: one of few items waits for no large one."""
        encoded: list[Encoded | InputError | InvalidInput] = []
        for start in range(0, len(items), SLICE_ITEMS):
            piece = slice(start, start + SLICE_ITEMS)
            encoded += await self._tokenizing.run(
                self._encode_all, items[piece], fields[piece], options.truncation, deadline=options.deadline
            )
        return encoded

    def _put(self, sequences: Sequence[Encoded], options: Options) -> "list[asyncio.Future[Done[Outputs]]]":
        lengths = [len(one) for one in sequences]
        if sum(lengths) > self._limits.max_tokens:
            raise InvalidInput.at(
                "items", f"hold {sum(lengths)} tokens, a call at most {self._limits.max_tokens}; split it"
            )
        caller = Caller(options.caller, options.weight, options.deadline)
        keys = None if options.deterministic else [one.key for one in sequences]
        futures = self.batcher.put(sequences, lengths, caller, keys, options.size)
        try:
            options.charge(sum(lengths))  # once there is room: nobody pays for being turned away
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return futures

    async def _run_batch(self, batch: Sequence[Encoded], deadline: float | None) -> list[Outputs]:
        return await self._computing.run(self._engine.score, list(batch), deadline=deadline)

    def _encode_all(
        self, items: Sequence[Item | InvalidInput], fields: Sequence[str], truncation: str
    ) -> list[Encoded | InputError | InvalidInput]:
        return [self._encode(*pair, truncation) for pair in zip(items, fields, strict=True)]

    def _encode(
        self, item: Item | InvalidInput, field: str, truncation: str
    ) -> Encoded | InputError | InvalidInput:
        if isinstance(item, InvalidInput):
            return item
        try:
            return self._engine.encode(item, field, truncation)
        except InputError as error:
            return error

    def _answer(self, one: Encoded, tokenize_seconds: float, done: Done[Outputs]) -> Answer:
        timing = Timing(done.queue_seconds, done.compute_seconds, tokenize_seconds)
        facts, outputs = self.facts, done.value
        raw = math.fsum(weight * output for weight, output in zip(self._weights, outputs, strict=True))
        reward = (raw - facts.reward_mean) / facts.reward_std
        if not math.isfinite(reward):
            return Answer(ScoreNotFinite(f"the model's score is {raw}; this item has no reward"), timing)
        named = zip(facts.attributes, outputs, strict=True) if len(outputs) > 1 else ()
        parts = tuple(Component(name, output, output) for name, output in named)
        score = Score(raw, reward, len(one), one.truncated_tokens, one.truncation, parts)
        return Answer(score, timing)
