"""How well scores order what people ordered.

Shapes: K completions of one prompt, P pairs of all prompts, N prompts, R bootstrap resamples.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.evaluate.statistics import Estimate, Floats, bootstrap
from trainer.progress import show_table
from trainer.reward_model.loss import margins, ranking_loss

BINS = 10


def measures(scores: Sequence[Tensor], ranks: Sequence[Sequence[int]], prefix: str) -> dict[str, float]:
    """The metrics of `prefix` over rankings with these scores_K.

    Accuracy is the share of pairs r_w > r_l; all pairs count alike, and so they do in margin,
    chosen_mean and rejected_mean. The loss is the mean over prompts.
    """
    margins_P = torch.cat([margins(s, r) for s, r in zip(scores, ranks, strict=True)]).double()
    every = torch.cat(list(scores)).double()
    chosen, rejected = zip(*(_sides(s, r) for s, r in zip(scores, ranks, strict=True)), strict=True)
    losses = [ranking_loss(s.double(), r) for s, r in zip(scores, ranks, strict=True)]
    values = {
        "loss": torch.stack(losses).mean(),
        "accuracy": (margins_P > 0).double().mean(),
        "margin": margins_P.mean(),
        "chosen_mean": torch.cat(chosen).double().mean(),
        "rejected_mean": torch.cat(rejected).double().mean(),
        "reward_mean": every.mean(),
        "reward_std": every.std(correction=0),
        "calibration_error": torch.tensor(calibration_error(margins_P)),
    }
    return {f"{prefix}/{name}": float(value) for name, value in values.items()}


def _sides(scores_K: Tensor, ranks: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Scores of the better and of the other completion of each pair."""
    ranks_K = torch.tensor(list(ranks))
    better, other = torch.nonzero(ranks_K[:, None] < ranks_K[None, :], as_tuple=True)
    return scores_K[better], scores_K[other]


def calibration_error(margins_P: Tensor, bins: int = BINS) -> float:
    """Expected calibration error of the model's belief in the order it predicts.

    Belief c = σ(|r_w − r_l|) lies in [½, 1]; in `bins` equal bins, Σ_b P_b/P · |share right − mean c|
    (Guo et al. 2017, eq. 3). An equal score is half right.
    """
    belief_P = torch.sigmoid(margins_P.abs())
    right_P = (margins_P > 0).double() + 0.5 * (margins_P == 0).double()
    bin_P = ((belief_P - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, bin_P, right_P - belief_P)
    return float(gaps.abs().sum() / len(margins_P))


def accuracy(scores: Sequence[Tensor], ranks: Sequence[Sequence[int]], seed: int) -> Estimate:
    """Share of pairs r_w > r_l with its 95 % bootstrap interval over prompts."""
    pairs = [margins(s, r) for s, r in zip(scores, ranks, strict=True)]
    right_N = np.array([int((each > 0).sum()) for each in pairs], dtype=np.float64)
    count_N = np.array([len(each) for each in pairs], dtype=np.float64)

    def share(weights_RN: Floats) -> Floats:
        return np.asarray((weights_RN @ right_N) / (weights_RN @ count_N))

    return bootstrap(share, len(pairs), seed)


def evaluation(
    scores: Sequence[Tensor], ranks: Sequence[Sequence[int]], prefix: str, seed: int
) -> dict[str, Any]:
    """What evaluation.json holds of a file of rankings: accuracy, by K too, and all measures."""
    by_size: defaultdict[int, list[int]] = defaultdict(list)
    for row, each in enumerate(ranks):
        by_size[len(each)].append(row)
    return {
        "accuracy": asdict(accuracy(scores, ranks, seed)),
        "accuracy_by_k": {
            str(size): asdict(accuracy([scores[row] for row in rows], [ranks[row] for row in rows], seed))
            for size, rows in sorted(by_size.items())
        },
        "pairs": sum(len(margins(s, r)) for s, r in zip(scores, ranks, strict=True)),
        "measures": measures(scores, ranks, prefix),
    }


def show_accuracies(held_out: Mapping[str, Mapping[str, Any]], ceiling: float | None) -> None:
    """Prints accuracy by file and by K, with the human ceiling where one is known."""
    rows = []
    for name, each in held_out.items():
        for size, estimate in {"all": each["accuracy"], **each["accuracy_by_k"]}.items():
            interval = f"{estimate['low']:.3f} to {estimate['high']:.3f}"
            rows.append((name, size, estimate["n"], estimate["mean"], interval))
    if ceiling is not None:
        rows.append(("people among themselves", "", "", ceiling, ""))
    if rows:
        show_table("Share of pairs ranked as people did", ("file", "K", "prompts", "accuracy", "95 %"), rows)
