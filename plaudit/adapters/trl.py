"""A reward model as the reward function of TRL's GRPOTrainer and RLOOTrainer.

from plaudit.adapters.trl import PlauditReward
trainer = GRPOTrainer(model, reward_funcs=PlauditReward("127.0.0.1:50052"), …)
"""

from collections.abc import Callable, Sequence
from typing import Literal, Unpack

from plaudit.adapters.items import Text, scorable
from plaudit.adapters.scorer import Address, Result, Scorer, ScorerOptions, error_of, log
from plaudit.clients import InvalidArgument, ItemFailure


class PlauditReward:
    """Scores all completions of a step together. It holds plain values only and may be pickled."""

    def __init__(
        self,
        address: Address | None = None,
        *,
        on_error: Literal["raise", "none"] = "raise",
        name: str = "plaudit",
        **options: Unpack[ScorerOptions],
    ) -> None:
        """`address` is PLAUDIT_REWARD of the environment unless given; `options` are ScorerOptions.

        A completion that can't be scored (empty, too long, …) ends the training; with `on_error` "none" it
        gets no reward, and TRL leaves it out of the means and gives it no advantage. A call that fails
        as a whole always raises. `name` is what TRL logs the rewards under. Raises InvalidArgument.
        """
        if on_error not in ("raise", "none"):
            raise InvalidArgument.at("on_error", f'{on_error!r} is neither "raise" nor "none"')
        self.__name__ = name
        self._on_error = on_error
        self._scorer = Scorer.of(address, **options)

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        *,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: object,
    ) -> list[float | None]:
        """The normalised reward of each completion: of a text behind its prompt, or of a conversation.

        With `log_metric`, which both trainers pass, the share of completions that got no reward is
        logged as name/unscored. Raises PlauditError.
        """
        pairs = zip(prompts, completions, strict=True)
        items = [
            scorable(prompt, completion, f"[{index}]") for index, (prompt, completion) in enumerate(pairs)
        ]
        rewards = [self._reward(index, result) for index, result in enumerate(self._scorer.score(items))]
        if log_metric is not None and rewards:
            log_metric(f"{self.__name__}/unscored", rewards.count(None) / len(rewards))
        return rewards

    def _reward(self, index: int, result: Result) -> float | None:
        if not isinstance(result, ItemFailure):
            return result.reward
        error = error_of(f"completion {index}", result)
        if self._on_error == "raise":
            raise error
        log.warning("%s", error)
        return None
