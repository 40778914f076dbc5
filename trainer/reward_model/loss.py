"""The ranking loss: all pairs of one prompt are one element of the batch.

Shapes: K completions of one prompt, P its pairs, N completions of all prompts (one prompt after another).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lm.placement import Placement, autocast
from lm.rewards import sequence_scores
from trainer.examples import RankedExamples


def margins(scores_K: Tensor, ranks: Sequence[int]) -> Tensor:
    """margins_P = r_w − r_l of all pairs that the ranks (1 is best) order; ties give none.

    Row after row of the better completion: (1, 2), (1, 3), (2, 3) for ranks 1, 2, 3.
    """
    ranks_K = torch.tensor(list(ranks), device=scores_K.device)
    better_KK = ranks_K[:, None] < ranks_K[None, :]
    return (scores_K[:, None] - scores_K[None, :])[better_KK]


def ranking_loss(scores_K: Tensor, ranks: Sequence[int]) -> Tensor:
    """−1/P · Σ log σ(r_w − r_l) over the P pairs of one prompt (Ouyang et al. 2022, eq. 1).

    P is C(K, 2) less the ties. At least one pair.
    """
    return -torch.nn.functional.logsigmoid(margins(scores_K, ranks)).mean()


def score_rankings(
    model: PreTrainedModel, placement: Placement, rankings: Sequence[RankedExamples]
) -> list[Tensor]:
    """Raw scores_K of each ranking, differentiable, by one forward pass over all of them."""
    sequences = [example.token_ids for ranking in rankings for example in ranking.examples]
    with autocast(placement):
        scores_N = sequence_scores(model, sequences)
    wide_N = scores_N if scores_N.dtype == torch.float64 else scores_N.float()
    return list(wide_N.split([len(ranking.examples) for ranking in rankings]))


def accumulate_gradient(
    model: PreTrainedModel, placement: Placement, batch: Sequence[RankedExamples], micro_batch_size: int
) -> list[Tensor]:
    """Adds the gradient of the mean ranking loss over the prompts; returns scores_K of each, in order."""
    found: dict[int, Tensor] = {}
    for rows in micro_batches(batch, micro_batch_size):
        scores = score_rankings(model, placement, [batch[row] for row in rows])
        losses = [ranking_loss(each, batch[row].ranks) for each, row in zip(scores, rows, strict=True)]
        (torch.stack(losses).sum() / len(batch)).backward()
        found.update(zip(rows, (each.detach().cpu() for each in scores), strict=True))
    return [found[row] for row in range(len(batch))]


@torch.no_grad()
def all_scores(
    model: PreTrainedModel, placement: Placement, rankings: Sequence[RankedExamples], micro_batch_size: int
) -> list[Tensor]:
    """scores_K of each ranking, in order, without gradient."""
    found: dict[int, Tensor] = {}
    for rows in micro_batches(rankings, micro_batch_size):
        scores = score_rankings(model, placement, [rankings[row] for row in rows])
        found.update(zip(rows, (each.cpu() for each in scores), strict=True))
    return [found[row] for row in range(len(rankings))]


def micro_batches(rankings: Sequence[RankedExamples], size: int) -> list[list[int]]:
    """Rows of whole prompts with at most `size` completions, at least one prompt; like lengths together."""
    lengths = [max(map(len, ranking.examples)) for ranking in rankings]
    groups: list[list[int]] = []
    room = 0
    for row in sorted(range(len(rankings)), key=lambda row: lengths[row]):
        count = len(rankings[row].examples)
        if count > room:
            groups.append([])
            room = size
        groups[-1].append(row)
        room -= count
    return groups
