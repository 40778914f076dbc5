"""The loss on completions, as sums over tokens that add up whatever the micro-batches.

Shapes: B sequences, N completion tokens of all sequences (row after row), H hidden size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lm.logprobs import CHUNK, logits_from_hidden, logprobs_from_logits, response_hidden
from lm.placement import Placement, autocast
from trainer.examples import Example
from trainer.optimisation import micro_batches


@dataclass
class Sums:
    """Sums over completion tokens; the EOS is one of them."""

    loss: float = 0.0
    """Σ −log p, in nats."""
    hits: int = 0
    """Tokens that are the most likely one."""
    tokens: int = 0
    eos_hits: int = 0
    sequences: int = 0

    def measures(self, prefix: str) -> dict[str, float]:
        """The metrics of these sums."""
        loss = self.loss / self.tokens
        return {
            f"{prefix}/loss": loss,
            f"{prefix}/perplexity": math.exp(min(loss, 700.0)),
            f"{prefix}/token_accuracy": self.hits / self.tokens,
            f"{prefix}/eos_accuracy": self.eos_hits / self.sequences,
        }


def completion_logprobs(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], starts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """logprobs_N of the completions' tokens, differentiable, and bool hits_N: is it the most likely one?"""
    hidden_NH, ids_N = response_hidden(model, sequences, starts)
    logprobs, hits = [], []
    for hidden, ids in zip(hidden_NH.split(CHUNK), ids_N.split(CHUNK), strict=True):
        logits = logits_from_hidden(model, hidden)
        logprobs.append(logprobs_from_logits(logits, ids))
        hits.append(logits.detach().argmax(dim=-1) == ids)
    return torch.cat(logprobs), torch.cat(hits)


def accumulate_gradient(
    model: PreTrainedModel, placement: Placement, batch: Sequence[Example], micro_batch_size: int
) -> Sums:
    """Adds the gradient of Σ_tokens −log p / (tokens of the whole batch)."""
    divisor = sum(len(example) - example.start for example in batch)
    sums = Sums()
    for micro in _micro_batches(batch, micro_batch_size):
        loss = _add(sums, model, placement, micro) / divisor
        loss.backward()
    return sums


@torch.no_grad()
def measure(
    model: PreTrainedModel, placement: Placement, examples: Sequence[Example], micro_batch_size: int
) -> Sums:
    """The sums over `examples`, without gradient; dropout is the caller's business."""
    sums = Sums()
    for micro in _micro_batches(examples, micro_batch_size):
        _add(sums, model, placement, micro)
    return sums


def _micro_batches(examples: Sequence[Example], size: int) -> list[list[Example]]:
    groups = micro_batches(range(len(examples)), [len(example) for example in examples], size)
    return [[examples[row] for row in rows] for rows in groups]


def _add(sums: Sums, model: PreTrainedModel, placement: Placement, examples: Sequence[Example]) -> Tensor:
    """Adds one micro-batch to `sums` and returns its summed loss, differentiable."""
    sequences = [example.token_ids for example in examples]
    starts = [example.start for example in examples]
    with autocast(placement):
        logprobs_N, hits_N = completion_logprobs(model, sequences, starts)
    counts_B = torch.tensor([len(example) - example.start for example in examples])
    last_B = (counts_B.cumsum(0) - 1).to(hits_N.device)
    loss = -logprobs_N.sum()
    sums.loss += float(loss.detach())
    sums.hits += int(hits_N.sum())
    sums.tokens += len(hits_N)
    sums.eos_hits += int(hits_N[last_B].sum())
    sums.sequences += len(examples)
    return loss
