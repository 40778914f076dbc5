"""The first half of a step: responses from the policy, scores and reference log-probabilities for them.

Shapes: B sequences, T response tokens (right-padded).
"""

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from trainer.errors import TrainerError
from trainer.ppo.roles import Roles, Scores
from trainer.ppo.rollout import Prompt, Rollout
from trainer.tracing import span, submit

ResultT = TypeVar("ResultT")


class RewardMissing(TrainerError):
    """Rewards could not be had; the message says how many, which and why."""

    resumable = True


@dataclass(frozen=True)
class Experience:
    """A rollout and what the reward and the reference say about it."""

    rollout: Rollout
    scores: Scores
    ref_logprobs_BT: Tensor
    """float32, at the sampling temperature; 0 where masked."""
    seconds: dict[str, float]
    """What the calls took: time/generate, time/score, time/reference."""


@dataclass(frozen=True)
class ScoredExperience:
    """Experience in which every sequence has its reward."""

    rollout: Rollout
    scores_B: Tensor
    """float32, normalised."""
    ref_logprobs_BT: Tensor
    """float32, at the sampling temperature; 0 where masked."""
    dropped: int
    """Sequences left out because their reward could not be had."""


def prompt_seeds(run_seed: int, step: int, count: int) -> list[int]:
    """One uint64 for each row of a step's batch, a hash of (run seed, step, row).

    The row, not the prompt: a prompt that stands twice in a batch gets two different responses.
    """
    keys = (f"{run_seed} {step} {row}".encode() for row in range(count))
    return [int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") for key in keys]


def collect(
    prompts: Sequence[Prompt], seeds: Sequence[int], step: int, roles: Roles, size: int | None = None
) -> Iterator[Experience]:
    """Yields the batch in order, `size` prompts at a time (all at once for None).

    Reward and reference are asked at the same time, and while they answer the next chunk is generated.
    What a role raises is raised here, after every call still running has ended.
    """
    size = size or len(prompts)
    waiting: deque[_Asked] = deque()
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="collect") as pool:
        for start in range(0, len(prompts), size):
            chunk = tuple(prompts[start : start + size])
            ask = partial(roles.policy.generate, chunk, seeds[start : start + size], step)
            responses, seconds = _timed("generate", ask)
            rollout = Rollout.of(chunk, tuple(responses))
            scores = submit(pool, _timed, "score", partial(roles.reward.score, rollout))
            ref_logprobs = submit(pool, _timed, "reference", partial(roles.reference.logprobs, rollout))
            waiting.append(_Asked(rollout, seconds, scores, ref_logprobs))
            while waiting and waiting[0].answered:
                yield waiting.popleft().experience()
        while waiting:
            yield waiting.popleft().experience()


@dataclass(frozen=True)
class _Asked:
    """A chunk with its two calls under way."""

    rollout: Rollout
    generate_s: float
    scores: Future[tuple[Scores, float]]
    ref_logprobs: Future[tuple[Tensor, float]]

    @property
    def answered(self) -> bool:
        return self.scores.done() and self.ref_logprobs.done()

    def experience(self) -> Experience:
        """Awaits both calls; if both failed, the first error carries a note about the second."""
        errors = [error for error in (self.scores.exception(), self.ref_logprobs.exception()) if error]
        if errors:
            for other in errors[1:]:
                errors[0].add_note(f"and at the same time {type(other).__name__}: {other}")
            raise errors[0]
        scores, score_s = self.scores.result()
        ref_logprobs_BT, reference_s = self.ref_logprobs.result()
        seconds = {"time/generate": self.generate_s, "time/score": score_s, "time/reference": reference_s}
        return Experience(self.rollout, scores, ref_logprobs_BT, seconds)


def _timed(what: str, ask: Callable[[], ResultT]) -> tuple[ResultT, float]:
    """The answer, and the seconds that it took; `what` names its span."""
    began = time.perf_counter()
    with span(what):
        return ask(), time.perf_counter() - began


def join(chunks: Iterable[Experience]) -> Experience:
    """Chunks of one batch as one experience, rows in order."""
    parts = list(chunks)
    prompts = tuple(prompt for part in parts for prompt in part.rollout.prompts)
    responses = tuple(response for part in parts for response in part.rollout.responses)
    rollout = Rollout.of(prompts, responses)
    width = rollout.loss_mask_BT.shape[1]
    ref_logprobs = [pad(part.ref_logprobs_BT, (0, width - part.ref_logprobs_BT.shape[1])) for part in parts]
    values: dict[int, float] = {}
    failures: dict[int, str] = {}
    offset = 0
    for part in parts:
        values |= {row + offset: value for row, value in part.scores.values.items()}
        failures |= {row + offset: reason for row, reason in part.scores.failures.items()}
        offset += len(part.rollout.responses)
    seconds = {name: sum(part.seconds[name] for part in parts) for name in parts[0].seconds}
    return Experience(rollout, Scores(values, failures), torch.cat(ref_logprobs), seconds)


def keep_scored(experience: Experience, on_reward_error: Literal["fail", "drop"]) -> ScoredExperience:
    """Leaves out what has no finite reward, or refuses; a missing reward never becomes a number.

    Raises RewardMissing: under "fail" if any is missing, under "drop" if none is left.
    """
    rows = range(len(experience.rollout.responses))
    values = experience.scores.values
    kept = [row for row in rows if row in values and math.isfinite(values[row])]
    dropped = len(rows) - len(kept)
    if dropped and (on_reward_error == "fail" or not kept):
        raise RewardMissing(_missing(experience.scores, sorted(set(rows) - set(kept)), len(rows)))
    rollout = experience.rollout.select(kept) if dropped else experience.rollout
    width = rollout.loss_mask_BT.shape[1]
    scores_B = torch.tensor([values[row] for row in kept])
    return ScoredExperience(rollout, scores_B, experience.ref_logprobs_BT[kept, :width], dropped)


def _missing(scores: Scores, rows: Sequence[int], count: int) -> str:
    first = rows[0]
    reason = scores.failures.get(first) or f"the reward was {scores.values.get(first, 'not in the answer')}"
    advice = 'ppo.on_reward_error = "drop" leaves such sequences out' if len(rows) < count else "none is left"
    return f"{len(rows)} of {count} rewards could not be had; sequence {first}: {reason} ({advice})"
