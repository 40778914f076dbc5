"""The comparison itself: samples of A and B, judged, measured, and put beside controls.

Everything follows from the seed. Shapes: N prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from plaudit.clients.data import ModelVersion
from trainer.data import Context
from trainer.evaluate import statistics
from trainer.evaluate.candidates import Candidate
from trainer.evaluate.config import BestOfNSection, EvaluateConfig
from trainer.evaluate.diversity import distinct_n, entropy_per_token
from trainer.evaluate.judges import Judge, judge_all
from trainer.evaluate.plugins import JudgeError
from trainer.evaluate.samples import Sample
from trainer.evaluate.statistics import Estimate, Floats
from trainer.ppo.collect import prompt_seeds

A, B, AGAIN = 0, 1, 2
"""Streams of seeds; best-of-n goes on from AGAIN."""


@dataclass(frozen=True)
class Answers:
    """Responses to the same prompts, with every judge's scores."""

    samples: Sequence[Sample]
    scores: Mapping[str, Floats]
    """By judge; NaN where it could not judge."""


class Comparison:
    """One comparison: who is compared, on what, by whom."""

    def __init__(
        self,
        a: Candidate,
        b: Candidate,
        contexts: Sequence[Context],
        judges: Mapping[str, Judge],
        config: EvaluateConfig,
    ) -> None:
        self._a, self._b = a, b
        self._contexts = contexts
        self._judges = judges
        self._config = config
        self._seed = config.run.seed

    def prompt_lengths(self) -> dict[str, list[int]]:
        """Tokens of each prompt, for those of A and B that are loaded here. Raises DataError."""
        lengths = {name: who.prompt_lengths(self._contexts) for name, who in (("A", self._a), ("B", self._b))}
        return {name: each for name, each in lengths.items() if each is not None}

    def run(self) -> dict[str, Any]:
        """The content of evaluation.json. Raises JudgeError, and what the candidates raise."""
        answers_a = self._judged(self._sample(self._a, A, "responses of A"))
        answers_b = self._judged(self._sample(self._b, B, "responses of B"))
        greedy = self._config.sampling.temperature == 0  # other seeds would change nothing
        again = None
        if self._config.control and not greedy:
            again = self._judged(self._sample(self._a, AGAIN, "responses of A, other seeds"))
        section = None if greedy else self._config.best_of_n
        best = self._best_of_n(section, again) if section else None
        kl, kl_reason = self._kl(answers_b.samples)
        return {
            "seed": self._seed,
            "prompts": {"path": str(self._config.data.prompts), "count": len(self._contexts)},
            "sampling": self._config.sampling.model_dump(),
            "a": self._facts(self._config.a.name, self._a.version, answers_a.samples),
            "b": self._facts(self._config.b.name, self._b.version, answers_b.samples),
            "judges": {name: self._verdict(name, answers_a, answers_b, again, best) for name in self._judges},
            "kl": kl and asdict(kl),
            "kl_reason": kl_reason,
            "best_of_n": section and best and _best_facts(section, len(best.samples)),
            "samples": [self._row(row, answers_a, answers_b) for row in range(self._shown)],
        }

    @property
    def _shown(self) -> int:
        return min(self._config.samples, len(self._contexts))

    def _sample(self, who: Candidate, stream: int, what: str, count: int | None = None) -> list[Sample]:
        contexts = self._contexts[:count]
        return who.sample(contexts, prompt_seeds(self._seed, stream, len(contexts)), what)

    def _judged(self, samples: Sequence[Sample]) -> Answers:
        return Answers(samples, {name: self._scores(name, samples) for name in self._judges})

    def _scores(self, name: str, samples: Sequence[Sample]) -> Floats:
        scores = judge_all(name, self._judges[name], samples)
        return np.array([np.nan if score is None else score for score in scores])

    def _best_of_n(self, section: BestOfNSection, again: Answers | None) -> Answers:
        """Of n samples of A to each of the first prompts the one that the judge likes most."""
        count = min(section.prompts, len(self._contexts))
        drawn = [
            self._sample(self._a, AGAIN + 1 + i, f"best of {section.n}", count) for i in range(section.n - 1)
        ]
        first = (
            again.samples[:count] if again else self._sample(self._a, AGAIN, f"best of {section.n}", count)
        )
        columns = [first, *drawn]
        scores = np.stack([self._scores(section.judge, samples) for samples in columns])
        # What can't be judged is never picked, unless nothing else is there.
        picks = np.argmax(np.nan_to_num(scores, nan=-np.inf), axis=0)
        return self._judged([columns[pick][row] for row, pick in enumerate(picks.tolist())])

    def _kl(self, samples: Sequence[Sample]) -> tuple[Estimate | None, str]:
        """KL(B‖A) per sequence, in nats: the mean over B's samples of Σ_t (log π_B − log π_A); or why not."""
        if self._config.sampling.temperature == 0:
            return None, "not defined at temperature 0"
        if self._a.version.tokenizer_sha256 != self._b.version.tokenizer_sha256:
            return None, "A and B have different tokenizers"
        of_a = self._a.logprob_sums(samples)
        if of_a is None:
            return None, "A is live; a.reference would give its log-probabilities"
        of_b = self._b.logprob_sums(samples) or [sum(sample.logprobs) for sample in samples]
        return statistics.mean_estimate(np.array(of_b) - np.array(of_a), self._seed), ""

    def _verdict(
        self, name: str, a: Answers, b: Answers, again: Answers | None, best: Answers | None
    ) -> dict[str, Any]:
        a_N, b_N = a.scores[name], b.scores[name]
        both_N = np.isfinite(a_N) & np.isfinite(b_N)
        if not both_N.any():
            raise JudgeError(f"judge {name!r} could judge no prompt's responses of both policies")
        lengths_N = _lengths(b.samples) - _lengths(a.samples)
        outcomes_N = statistics.outcomes(a_N[both_N], b_N[both_N])
        controlled = statistics.length_controlled_win_rate(outcomes_N, lengths_N[both_N], self._seed)
        return {
            "a": asdict(statistics.mean_estimate(a_N[both_N], self._seed)),
            "b": asdict(statistics.mean_estimate(b_N[both_N], self._seed)),
            "unscored": int((~both_N).sum()),
            "win_rate": asdict(statistics.win_rate(outcomes_N, self._seed)),
            "length_controlled_win_rate": asdict(controlled),
            "control": again and self._win_rate(a_N, again.scores[name]),
            "best_of_n": best and self._win_rate(a_N, best.scores[name]),
            "best_of_n_mean": best and float(np.nanmean(best.scores[name])),
        }

    def _win_rate(self, a_N: Floats, other_N: Floats) -> dict[str, Any] | None:
        """Of another set of responses over A's to the same first prompts."""
        a_N = a_N[: len(other_N)]
        both_N = np.isfinite(a_N) & np.isfinite(other_N)
        if not both_N.any():
            return None
        return asdict(statistics.win_rate(statistics.outcomes(a_N[both_N], other_N[both_N]), self._seed))

    def _facts(self, label: str, version: ModelVersion, samples: Sequence[Sample]) -> dict[str, Any]:
        texts = [sample.text for sample in samples]
        return {
            "label": label,
            **asdict(version),
            "length_mean": float(_lengths(samples).mean()),
            "eos_rate": sum(sample.ended for sample in samples) / len(samples),
            "distinct_1": distinct_n(texts, 1),
            "distinct_2": distinct_n(texts, 2),
            "entropy": entropy_per_token([sample.logprobs for sample in samples]),
        }

    def _row(self, row: int, a: Answers, b: Answers) -> dict[str, Any]:
        scores = {
            name: [_or_none(a.scores[name][row]), _or_none(b.scores[name][row])] for name in self._judges
        }
        return {
            "prompt": a.samples[row].prompt,
            "a": a.samples[row].text,
            "b": b.samples[row].text,
            "scores": scores,
        }


def _lengths(samples: Sequence[Sample]) -> Floats:
    return np.array([len(sample.token_ids) for sample in samples], dtype=np.float64)


def _or_none(score: float) -> float | None:
    return float(score) if np.isfinite(score) else None


def _best_facts(section: BestOfNSection, prompts: int) -> dict[str, Any]:
    return {
        "n": section.n,
        "judge": section.judge,
        "prompts": prompts,
        "kl_bound": statistics.best_of_n_kl_bound(section.n),
        "win_bound": statistics.best_of_n_win_bound(section.n),
    }
