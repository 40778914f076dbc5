"""A reward model as OpenRLHF's reward function: a file with `reward_func(queries, prompts, labels)`.

This file is one; PLAUDIT_REWARD names the reward service:

    --reward.remote_url .../plaudit/adapters/openrlhf.py

To say more, write your own:

    from plaudit.adapters.openrlhf import PlauditReward
    reward_func = PlauditReward("127.0.0.1:50052", truncation="left")

OpenRLHF calls it for one response at a time, in many threads. Those calls are collected into few of many
items (scorer.Collector).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict, Unpack

from plaudit.adapters.scorer import Address, Result, Scorer, ScorerOptions, error_of, log
from plaudit.clients import InvalidArgument, ItemFailure, PlauditError, Reward

END_TOKENS = (
    "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<eos>",
    "</s>",
)  # fmt: skip
"""What well-known policies end a response with. OpenRLHF leaves it in the text, where it means nothing."""


class Rewards(TypedDict):
    """What OpenRLHF wants: per response the reward to learn from, the score to filter by, numbers to log."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


class PlauditReward:
    """Scores responses. It holds plain values only and may be pickled."""

    def __init__(
        self,
        address: Address | None = None,
        *,
        end_tokens: str | Iterable[str] = END_TOKENS,
        empty_reward: float | None = None,
        **options: Unpack[ScorerOptions],
    ) -> None:
        """`address` is PLAUDIT_REWARD of the environment unless given; `options` are ScorerOptions.

        `end_tokens` are cut off the end of responses. `empty_reward` is the reward of a response without
        any text, which no model is asked about; an error unless given. Raises InvalidArgument.
        """
        named = (end_tokens,) if isinstance(end_tokens, str) else end_tokens
        self._end_tokens = tuple(filter(None, named))
        self._empty_reward = empty_reward
        self._scorer = Scorer.of(address, **options)

    def __call__(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[object], **_: object
    ) -> Rewards:
        """The normalised reward of each response.

        A query is its prompt and the response. A label that is a list of turns takes the prompt's place:
        the conversation that a chat template made the prompt of, for the reward model's own template.

        Raises PlauditError, and logs it as an error, since OpenRLHF catches it: its run then ends for want
        of a reward. One that could not be had is never made up.
        """
        try:
            rewards = self._rewards(queries, prompts, labels)
        except PlauditError as error:
            log.error("%s", error)
            raise
        values = [reward.reward for reward in rewards]
        empty = [float(reward.token_count == 0) for reward in rewards]
        return {"rewards": values, "scores": values, "extra_logs": {"empty_response": empty}}

    def _rewards(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[object]
    ) -> list[Reward]:
        begun = [
            self._scorer.submit(
                _conversation(label) or prompt, self._response(query, prompt), self._empty_reward
            )
            for query, prompt, label in zip(queries, prompts, labels, strict=True)
        ]
        return [_reward(future.result()) for future in begun]

    def _response(self, query: str, prompt: str) -> str:
        if not query.startswith(prompt):
            raise InvalidArgument.at(
                "queries",
                f"{query[:80]!r} doesn't begin with its prompt {prompt[:80]!r}: the tokenizer changes the "
                "text, or the prompt was cut to fit --data.max_len",
            )
        response = query[len(prompt) :]
        while end := next(filter(response.endswith, self._end_tokens), None):
            response = response.removesuffix(end)
        return response


def _conversation(label: object) -> list[Mapping[str, str]] | None:
    turns = label if isinstance(label, list) else []
    return turns if all(isinstance(turn, Mapping) for turn in turns) else None


def _reward(result: Result) -> Reward:
    if isinstance(result, ItemFailure):
        raise error_of("a response", result)
    return result


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Sequence[object], **_: object
) -> Rewards:
    """PlauditReward of the environment's PLAUDIT_REWARD."""
    return PlauditReward()(queries, prompts, labels)
