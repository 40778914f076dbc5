"""A reward model as verl's custom reward function, one text at a time as verl calls it, or a batch.

    reward.custom_reward_function.path=pkg://plaudit.adapters.verl
    reward.custom_reward_function.name=compute_score_async
    +reward.custom_reward_function.reward_kwargs.address=127.0.0.1:50052

verl calls for each response of a step at once. Those calls are collected into few of many items
(scorer.Collector), so the reward service sees a bounded number at a time, in batches.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Unpack

from plaudit.adapters.scorer import Address, Result, Scorer, ScorerOptions, error_of
from plaudit.clients import InvalidArgument, ItemFailure


class RewardOptions(ScorerOptions, total=False):
    """What verl's reward_kwargs may hold."""

    address: Address
    """PLAUDIT_REWARD of the environment if left out."""
    prompt_key: str
    """Where extra_info has the prompt, which verl doesn't hand over: text or turns; "prompt" if left out."""
    empty_reward: float
    """The reward of a response without any text, which no model is asked about. An error if left out."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: object,
    extra_info: Mapping[str, Any] | None = None,
    **options: Unpack[RewardOptions],
) -> dict[str, float]:
    """The normalised reward of a response as "score"; "empty_response" is 1 if it had no text, else 0.

    May be called from any number of threads. Raises PlauditError: verl has no way to leave a response
    out, and a reward that could not be had is never made up.
    """
    return _answer(data_source, _begin(solution_str, extra_info, **options).result())


async def compute_score_async(
    data_source: str,
    solution_str: str,
    ground_truth: object,
    extra_info: Mapping[str, Any] | None = None,
    **options: Unpack[RewardOptions],
) -> dict[str, float]:
    """compute_score to be awaited, in any number of tasks."""
    return _answer(data_source, await asyncio.wrap_future(_begin(solution_str, extra_info, **options)))


def compute_score_batch(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[object],
    extra_infos: Sequence[Mapping[str, Any] | None],
    **options: Unpack[RewardOptions],
) -> list[dict[str, float]]:
    """compute_score of many responses, as verl's BatchRewardManager calls it."""
    pairs = zip(solution_strs, extra_infos, strict=True)
    begun = [_begin(solution, extra_info, **options) for solution, extra_info in pairs]
    return [_answer(source, future.result()) for source, future in zip(data_sources, begun, strict=True)]


def _begin(
    solution: str,
    extra_info: Mapping[str, Any] | None,
    *,
    address: Address | None = None,
    prompt_key: str = "prompt",
    empty_reward: float | None = None,
    **options: Unpack[ScorerOptions],
) -> Future[Result]:
    prompt = (extra_info or {}).get(prompt_key)
    if prompt is None:
        raise InvalidArgument.at(
            f"extra_info.{prompt_key}",
            "is missing, and verl hands the prompt over nowhere else; add it to the data set, or name the "
            "key that has it in reward_kwargs.prompt_key",
        )
    return Scorer.of(address, **options).submit(prompt, solution, empty_reward)


def _answer(data_source: str, result: Result) -> dict[str, float]:
    if isinstance(result, ItemFailure):
        raise error_of(f"a response of {str(data_source)!r}", result)  # verl may give numpy's str
    return {"score": result.reward, "empty_response": float(result.token_count == 0)}
