"""Several reward models that answer as one: the known guard against over-optimisation of a single one.

Coste et al. 2024, "Reward Model Ensembles Help Mitigate Overoptimization": the mean, the worst case, and
the mean less a multiple of the members' disagreement (theirs is the variance, ours the deviation, which has
the reward's unit).
"""

import asyncio
import hashlib
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

from services.errors import InvalidInput, QuotaExceeded
from services.reward.config import EnsembleSpec
from services.reward.dataplane import PlainModel
from services.reward.interface import Answer, Combination, ComponentFacts, Options, Pending, Timing
from services.reward.items import Component, Item, ModelFacts, Score


class Ensemble:
    """Asks all members, each by its own queue, and combines their normalised rewards."""

    def __init__(self, spec: EnsembleSpec, members: Sequence[PlainModel]) -> None:
        """`members` may still be loading."""
        self.name = spec.name
        self.compare_temperature = spec.compare_temperature
        self._spec = spec
        self._members = members
        self._combine = combiner(spec.combine, spec.deviation_factor)

    @cached_property
    def facts(self) -> ModelFacts:
        """What holds for all members, who are loaded; `tokenizer_sha256` is empty where they differ in it."""
        every = [member.facts for member in self._members]
        tokenizers = {facts.tokenizer_sha256 for facts in every}
        return ModelFacts(
            model_id=f"{self._spec.combine}({', '.join(self._spec.ensemble)})",
            weights_sha256=self._digest(),
            tokenizer_sha256=tokenizers.pop() if len(tokenizers) == 1 else "",
            dtype=every[0].dtype,
            vocabulary_size=min(facts.vocabulary_size for facts in every),
            context_length=min(facts.context_length for facts in every),
            reward_mean=0.0,
            reward_std=1.0,
            has_chat_template=all(facts.has_chat_template for facts in every),
            placement=every[0].placement,
        )

    @property
    def combination(self) -> Combination:
        """The rule of the configuration."""
        return self._spec.combine

    @property
    def deviation_factor(self) -> float:
        """The k of "mean_minus_std"; 0 otherwise."""
        return self._spec.deviation_factor if self._spec.combine == "mean_minus_std" else 0.0

    @property
    def components(self) -> tuple[ComponentFacts, ...]:
        """The members."""
        return tuple(ComponentFacts(member.name, facts=member.facts) for member in self._members)

    @property
    def waiting_items(self) -> int:
        """Of all members together."""
        return sum(member.waiting_items for member in self._members)

    @property
    def waiting_tokens(self) -> int:
        """Of all members together."""
        return sum(member.waiting_tokens for member in self._members)

    @property
    def waiting_bytes(self) -> int:
        """Of all members together."""
        return sum(member.waiting_bytes for member in self._members)

    def admit(self, items: int, options: Options) -> None:
        """As RewardModel.admit."""
        for member in self._members:
            member.admit(items, options)

    async def begin(
        self, items: Sequence[Item | InvalidInput], fields: Sequence[str], options: Options
    ) -> list[Pending]:
        """As RewardModel.begin. What one member refuses, all withdraw."""
        counts: list[int] = []
        own = replace(options, charge=counts.append)
        begun = await asyncio.gather(
            *(member.begin(items, fields, own) for member in self._members), return_exceptions=True
        )
        failed = next((result for result in begun if isinstance(result, BaseException)), None)
        answers = [result for result in begun if not isinstance(result, BaseException)]
        if failed is None:
            try:  # for all together: one by one, the second would be refused for the first, again and again
                options.charge(sum(counts))
            except QuotaExceeded as error:
                failed = error
        if failed is not None:
            for pending in (each for member in answers for each in member):
                pending.future.cancel()
            raise failed
        return [self._together(parts) for parts in zip(*answers, strict=True)]

    async def wait_for_room(self, items: int, options: Options) -> None:
        """As RewardModel.wait_for_room."""
        for member in self._members:
            await member.wait_for_room(items, options)

    def _together(self, parts: Sequence[Pending]) -> Pending:
        def finish(results: Sequence[object]) -> Answer:
            return self._answer([part.finish(result) for part, result in zip(parts, results, strict=True)])

        return Pending(asyncio.gather(*(part.future for part in parts)), finish)

    def _answer(self, answers: Sequence[Answer]) -> Answer:
        timing = max((answer.timing for answer in answers), default=Timing())
        scores = [answer.outcome for answer in answers if isinstance(answer.outcome, Score)]
        if len(scores) < len(answers):
            return Answer(
                next(each.outcome for each in answers if not isinstance(each.outcome, Score)), timing
            )
        value = self._combine([score.reward for score in scores])
        longest = max(scores, key=lambda score: score.token_count)
        cut = max(scores, key=lambda score: score.truncated_tokens)
        parts = tuple(
            Component(member.name, score.raw_reward, score.reward)
            for member, score in zip(self._members, scores, strict=True)
        )
        score = Score(value, value, longest.token_count, cut.truncated_tokens, cut.truncation, parts)
        return Answer(score, timing)

    def _digest(self) -> str:
        """Over the rule and the members' digests, in their order."""
        content = [
            self._spec.combine,
            self.deviation_factor,
            [member.facts.weights_sha256 for member in self._members],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def combiner(rule: Combination, deviation_factor: float) -> Callable[[Sequence[float]], float]:
    """The function of the members' rewards; the deviation is the population's, over the members."""
    if rule == "min":
        return min
    if rule == "mean_minus_std":
        return lambda rewards: statistics.fmean(rewards) - deviation_factor * statistics.pstdev(rewards)
    return statistics.fmean
