"""Evaluation during the run, on prompts that aren't trained on: which step was best, and when to stop.

Every evaluation draws with the same seeds, so that two of them differ by the weights only. They judge the
live weights, never the moving average.

    runs/NAME/evaluations/00000016.json   one evaluation, its first responses as samples
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from trainer.disk import Disk
from trainer.evaluate import statistics
from trainer.evaluate.diversity import distinct_n
from trainer.evaluate.judges import Judge, judge_all
from trainer.evaluate.samples import Sample
from trainer.evaluate.statistics import Floats
from trainer.examples import PromptIds
from trainer.outputs import write_json
from trainer.ppo.collect import Experience, collect, join, prompt_seeds
from trainer.ppo.inputs import to_prompt
from trainer.ppo.measure import response_measures
from trainer.ppo.rewards import kl_per_token
from trainer.ppo.roles import Roles
from trainer.ppo.run_sections import EvaluationSection
from trainer.sampler import derived_seed

REWARD = "reward"
"""What the reward service is called among the judges."""


class HeldOut:
    """The evaluations of one run."""

    def __init__(
        self,
        prompts: Sequence[PromptIds],
        roles: Roles,
        judges: Mapping[str, Judge],
        config: EvaluationSection,
        *,
        folder: Path,
        disk: Disk,
        seed: int,
        tokenizer_sha256: str,
    ) -> None:
        """`folder`, `disk` and `seed` are the run's; `tokenizer_sha256` is the learner's."""
        self._prompts, self._roles, self._judges, self._config = prompts, roles, judges, config
        self._folder = folder / "evaluations"
        self._disk = disk
        self._seed = derived_seed(seed, "evaluation")
        self._tokenizer_sha256 = tokenizer_sha256
        self.evaluated = -1
        """Step of the last evaluation; -1 before the first."""
        self.best_step = -1
        self._best = -np.inf
        self._without_best = 0
        self._baseline: dict[str, Floats] = {}
        """Scores of the first evaluation by judge: what win rates are against."""
        self.samples: list[dict[str, Any]] = []
        """Of the last evaluation, as its file has them."""

    def due(self, step: int, last: bool) -> bool:
        """Whether the weights of `step` are to be judged now."""
        return bool(self._prompts) and step != self.evaluated and (last or step % self._config.every == 0)

    @property
    def enough(self) -> bool:
        """Whether the run should end, since nothing got better for too long."""
        limit = self._config.stop_after
        return limit is not None and self._without_best >= limit

    def evaluate(self, step: int) -> dict[str, float]:
        """Judges the weights of `step`, which the policy must serve; writes the file, returns the metrics.

        Raises what the roles raise, JudgeError and DiskUnusable.
        """
        experience, samples = self._sample(step)
        scores = self._scores(experience, samples)
        self._baseline = self._baseline or scores
        measures = self._measures(experience, samples, scores)
        self._remember(step, measures["eval/judge"])
        self._write(step, measures, samples, scores)
        return {name: value for name, value in measures.items() if np.isfinite(value)}

    def _sample(self, step: int) -> tuple[Experience, list[Sample]]:
        prompts = [to_prompt(prompt) for prompt in self._prompts]
        experience = join(collect(prompts, prompt_seeds(self._seed, 0, len(prompts)), step, self._roles))
        pairs = zip(self._prompts, experience.rollout.responses, strict=True)
        samples = [
            Sample(
                prompt.context, prompt.token_ids, response.token_ids, response.text, response.logprobs,
                response.ended, self._tokenizer_sha256,
            )
            for prompt, response in pairs
        ]  # fmt: skip
        return experience, samples

    def _scores(self, experience: Experience, samples: Sequence[Sample]) -> dict[str, Floats]:
        """By judge, the reward service first; NaN where there is none."""
        of_service = [experience.scores.values.get(row, np.nan) for row in range(len(samples))]
        scores = {REWARD: np.array(of_service)}
        for name, judge in self._judges.items():
            given = judge_all(name, judge, samples)
            scores[name] = np.array([np.nan if score is None else score for score in given])
        return scores

    def _measures(
        self, experience: Experience, samples: Sequence[Sample], scores: Mapping[str, Floats]
    ) -> dict[str, float]:
        rollout = experience.rollout
        kl_BT = kl_per_token(rollout.logprobs_BT, experience.ref_logprobs_BT, rollout.loss_mask_BT)
        of_responses = response_measures(rollout)
        return {
            "eval/scores": _mean(scores[REWARD]),
            "eval/judge": _mean(scores[self._config.best_by]),
            "eval/win_rate": self._win_rate(self._config.best_by, scores)["mean"],
            "eval/kl": float(kl_BT.sum(dim=1).mean()),
            "eval/response_length": of_responses["response_length/mean"],
            "eval/eos_rate": of_responses["val/eos_rate"],
            "eval/distinct_2": distinct_n([sample.text for sample in samples], 2),
        }

    def _win_rate(self, name: str, scores: Mapping[str, Floats]) -> dict[str, Any]:
        """Over the first evaluation's responses to the same prompts."""
        first_N, now_N = self._baseline[name], scores[name]
        both_N = np.isfinite(first_N) & np.isfinite(now_N)
        if not both_N.any():
            return {"mean": np.nan}
        outcomes_N = statistics.outcomes(first_N[both_N], now_N[both_N])
        return asdict(statistics.win_rate(outcomes_N, self._seed))

    def _remember(self, step: int, score: float) -> None:
        self.evaluated = step
        if score > self._best:
            self._best, self.best_step, self._without_best = score, step, 0
        else:
            self._without_best += 1

    def _write(
        self,
        step: int,
        measures: Mapping[str, float],
        samples: Sequence[Sample],
        scores: Mapping[str, Floats],
    ) -> None:
        shown = range(min(self._config.samples, len(samples)))
        self.samples = [
            {
                "prompt": samples[row].prompt,
                "response": samples[row].text,
                "scores": {name: _or_none(values[row]) for name, values in scores.items()},
            }
            for row in shown
        ]
        evaluation = {
            "step": step,
            "measures": {name: _or_none(value) for name, value in measures.items()},
            "judges": {
                name: {
                    "mean": _or_none(_mean(values)),
                    "win_rate": _win_rate_json(self._win_rate(name, scores)),
                }
                for name, values in scores.items()
            },
            "samples": self.samples,
        }
        path = self._folder / f"{step:08d}.json"
        self._disk.write(path, 0, lambda: write_json(path, evaluation))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to judge as this one would have."""
        return {
            "evaluated": self.evaluated,
            "best_step": self.best_step,
            "best": None if np.isinf(self._best) else float(self._best),
            "without_best": self._without_best,
            "baseline": {name: [_or_none(x) for x in values] for name, values in self._baseline.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.evaluated, self.best_step = state["evaluated"], state["best_step"]
        self._best = -np.inf if state["best"] is None else state["best"]
        self._without_best = state["without_best"]
        self._baseline = {
            name: np.array([np.nan if x is None else x for x in values])
            for name, values in state["baseline"].items()
        }


def _mean(scores_N: Floats) -> float:
    """Of those that are there; NaN if none is."""
    there_N = scores_N[np.isfinite(scores_N)]
    return float(there_N.mean()) if len(there_N) else np.nan


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _win_rate_json(estimate: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return estimate if np.isfinite(estimate["mean"]) else None
