"""The policy as it learns: old log-probabilities, then epochs × minibatches of clipped PPO (+ ptx).

Shapes: B sequences, T response tokens (right-padded), N response tokens of a micro-batch, flattened.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lm.loading import LoadedLM
from lm.logprobs import response_logprobs, response_logprobs_and_entropy, unflatten
from lm.placement import Placement, autocast
from lm.trainable import Rule
from trainer.errors import CheckpointError, NotFinite
from trainer.optimisation import TrainedModel, micro_batches, warmup_factor
from trainer.ppo.config import PPOSection
from trainer.ppo.ema import MovingAverage
from trainer.ppo.loss import policy_loss
from trainer.ppo.ptx import PretrainingMix
from trainer.ppo.roles import Critic
from trainer.ppo.rollout import Rollout

EARLY_STOP_FACTOR = 1.5
MOST_SKIPS_IN_A_ROW = 3
EXACT_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Batch:
    """A rollout with everything that learning from it needs, fixed for all epochs."""

    rollout: Rollout
    old_logprobs_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor
    old_values_BT: Tensor
    weights_BT: Tensor
    """Importance weights of the policy's loss; 1 without correction."""


class Learner:
    """Trains the policy. Randomness comes from its own generator, never the global one."""

    def __init__(
        self,
        policy: LoadedLM,
        config: PPOSection,
        *,
        trainable: Rule,
        placement: Placement,
        generator_dtype: torch.dtype,
        temperature: float,
        seed: int,
        pretraining: PretrainingMix | None = None,
    ) -> None:
        """Takes over `policy`, loaded at `placement`.

        `generator_dtype` is what the serving policy computes in; `temperature` the sampling's.
        Raises InputError for a rule that selects nothing, ValueError for a mix without text.
        """
        if config.ptx_coef and pretraining is None:
            raise ValueError("ptx_coef asks for a pretraining mix, and there is none")
        self._model = policy.model
        self._config = config
        self._placement = placement
        self._temperature = temperature
        self._trained = TrainedModel(policy.model, trainable, config, config.learning_rate)
        self._generator = torch.Generator().manual_seed(seed)
        self._pretraining = pretraining if config.ptx_coef else None
        self._average = (
            MovingAverage(config.ema_decay, self._trained.parameters) if config.ema_decay else None
        )
        self.trusts_generator = config.old_logprobs == "generator" or (
            config.old_logprobs == "auto" and {generator_dtype, placement.dtype} <= set(EXACT_DTYPES)
        )
        """Whether the generator's log-probabilities are the old ones; else the learner's own."""
        self.step = 0
        """Iterations done, and so the version of the weights."""
        self.episodes = 0
        """Responses sampled so far."""
        self._skips_in_a_row = 0

    @property
    def learning_rate(self) -> float:
        """Of the current iteration; warm-up starts when the policy begins to move."""
        moved = max(self.step - self._config.critic_warmup, 0)
        factor = warmup_factor(moved, self._config.warmup_iterations, self._config.warmup_start)
        return self._config.learning_rate * factor

    def analyse(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """(logprobs_BT, entropy_BT) of the current weights at the sampling temperature; 0 where masked."""
        shape = rollout.loss_mask_BT.shape
        logprobs_BT, entropy_BT = torch.zeros(shape), torch.zeros(shape)
        if self._placement.dtype == torch.float64:
            logprobs_BT, entropy_BT = logprobs_BT.double(), entropy_BT.double()
        for rows in self._micro_batches(rollout, range(shape[0])):
            sequences, starts, counts = _inputs(rollout, rows)
            with autocast(self._placement):
                flat = response_logprobs_and_entropy(self._model, sequences, starts, self._temperature)
            logprobs_BT[rows], entropy_BT[rows] = (unflatten(x_N.cpu(), counts, shape[1]) for x_N in flat)
        return logprobs_BT, entropy_BT

    def update(self, batch: Batch, critic: Critic) -> dict[str, float]:
        """All epochs and minibatches of one iteration, critic included.

        Returns the means of the minibatches' measures, and how many updates were done and skipped and
        whether the KL stopped it (0 or 1).
        Raises NotFinite after three minibatches in a row without finite gradients.
        """
        totals: defaultdict[str, list[float]] = defaultdict(list)
        updates, skipped, stopped = 0, 0, False
        for rows in self._minibatches(len(batch.rollout.responses)):
            measures, stopped = self._policy_gradient(batch, rows)
            taken = not stopped and self._apply(batch, rows, critic, measures)
            updates, skipped = updates + taken, skipped + (not taken and not stopped)
            if taken or stopped:
                for name, value in measures.items():
                    totals[name].append(value)
            if stopped:
                break
        counts = {"updates": updates, "skipped_updates": skipped, "kl_stops": stopped}
        return _means(totals) | {name: float(count) for name, count in counts.items()}

    def advance(self, episodes: int) -> None:
        """Ends an iteration of `episodes` sampled responses; the weights have a new version."""
        self.step += 1
        self.episodes += episodes

    def changed_tensors(self, dtype: torch.dtype, averaged: bool = False) -> Iterator[tuple[str, Tensor]]:
        """What training changes, by state-dict name, tied tensors once; the moving average on request.

        Raises ValueError if the average is asked for and off.
        """
        if averaged and self._average is None:
            raise ValueError("there is no moving average: ema_decay is not set")
        named: Mapping[str, Tensor] = self._trained.parameters
        if averaged and self._average is not None:
            named = self._average.tensors
        for name, tensor in named.items():
            yield name, tensor.detach().to(dtype)

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on bit for bit; live tensors, not copies."""
        return {
            "policy": self._trained.state_dict(),
            "average": self._average.state_dict() if self._average else None,
            "pretraining": self._pretraining.state_dict() if self._pretraining else None,
            "generator": self._generator.get_state(),
            "step": self.step,
            "episodes": self.episodes,
            "skips_in_a_row": self._skips_in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`. Raises CheckpointError if a part is absent."""
        missing = [name for name, part in self.state_dict().items() if part is not None]
        missing = [name for name in missing if state.get(name) is None]
        if missing:
            raise CheckpointError(f"the checkpoint lacks the learner's {', '.join(missing)}")
        self._trained.load_state_dict(state["policy"])
        if self._average:
            self._average.load_state_dict(state["average"])
        if self._pretraining:
            self._pretraining.load_state_dict(state["pretraining"])
        self._generator.set_state(state["generator"])
        self.step, self.episodes = int(state["step"]), int(state["episodes"])
        self._skips_in_a_row = int(state["skips_in_a_row"])

    def _minibatches(self, count: int) -> Iterator[list[int]]:
        """Rows of each minibatch of each epoch; as even as can be, whatever was dropped."""
        for _ in range(self._config.num_ppo_epochs):
            order = torch.randperm(count, generator=self._generator)
            for rows in order.tensor_split(min(self._config.num_mini_batches, count)):
                yield rows.tolist()

    def _micro_batches(self, rollout: Rollout, rows: Sequence[int]) -> Iterator[list[int]]:
        lengths = [len(sequence) for sequence in rollout.sequences]
        return micro_batches(rows, lengths, self._config.micro_batch_size)

    def _policy_gradient(self, batch: Batch, rows: Sequence[int]) -> tuple[dict[str, float], bool]:
        """Accumulates PPO's and ptx's gradients; its measures, and whether the KL ends the iteration."""
        if self.step < self._config.critic_warmup:
            return {}, False
        measures = self._ppo_gradient(batch, rows)
        limit = self._config.target_kl
        if limit is not None and measures["policy/approxkl_avg"] > EARLY_STOP_FACTOR * limit:
            self._trained.clear_gradients()
            return measures, True
        if self._pretraining is not None:
            measures |= self._ptx_gradient(self._pretraining.take(self._config.ptx_ratio * len(rows)))
        return measures, False

    def _ppo_gradient(self, batch: Batch, rows: Sequence[int]) -> dict[str, float]:
        rollout = batch.rollout
        divisor = float(rollout.loss_mask_BT[rows].sum())
        totals = torch.zeros(5, dtype=torch.float64)
        for micro in self._micro_batches(rollout, rows):
            sequences, starts, counts = _inputs(rollout, micro)
            with autocast(self._placement):
                logprobs_N = response_logprobs(self._model, sequences, starts, self._temperature)
            logprobs_BT = unflatten(logprobs_N, counts)
            fixed = (batch.old_logprobs_BT, batch.advantages_BT, rollout.loss_mask_BT, batch.weights_BT)
            old_BT, advantages_BT, mask_BT, weights_BT = (
                x_BT[micro, : max(counts)].to(logprobs_BT.device) for x_BT in fixed
            )
            share = policy_loss(
                logprobs_BT, old_BT, advantages_BT, mask_BT, divisor, self._config.cliprange, weights_BT
            )
            share.loss.backward()
            totals += torch.stack([part.detach().double().cpu() for part in share])
        names = ("loss/policy_avg", "policy/clipfrac_avg", "policy/approxkl_avg", _EXCESS, _EXCESS_SQ)
        measures = dict(zip(names, totals.tolist(), strict=True))
        return measures | {"grad_norm/policy": self._trained.gradient_norm()}

    def _ptx_gradient(self, sequences: Sequence[Sequence[int]]) -> dict[str, float]:
        """Adds γ · mean negative log-likelihood per token of pretraining text to the gradient.

        loss/ptx is without γ; grad_norm/ptx is what is added, γ included.
        """
        divisor = sum(len(sequence) - 1 for sequence in sequences)
        ppo = self._trained.take_gradients()
        total = 0.0
        lengths = [len(sequence) for sequence in sequences]
        for micro in micro_batches(range(len(sequences)), lengths, self._config.micro_batch_size):
            chosen = [sequences[row] for row in micro]
            with autocast(self._placement):
                logprobs_N = response_logprobs(self._model, chosen, [1] * len(chosen))
            loss = -logprobs_N.sum() / divisor
            (self._config.ptx_coef * loss).backward()
            total += float(loss.detach())
        norm = self._trained.gradient_norm()
        self._trained.add_gradients(ppo)
        return {"loss/ptx": total, "grad_norm/ptx": norm}

    def _apply(self, batch: Batch, rows: list[int], critic: Critic, measures: dict[str, float]) -> bool:
        """Steps policy and critic, or neither if a gradient isn't finite; adds the critic's measures."""
        norm = self._trained.gradient_norm()
        finite = math.isfinite(norm)
        if finite:
            divisor = float(batch.rollout.loss_mask_BT[rows].sum())
            measures |= critic.update(batch.rollout, rows, batch.old_values_BT, batch.returns_BT, divisor)
            finite = math.isfinite(measures["grad_norm/value"])
        self._skips_in_a_row = 0 if finite else self._skips_in_a_row + 1
        if self._skips_in_a_row == MOST_SKIPS_IN_A_ROW:
            raise NotFinite(f"gradients were not finite in {MOST_SKIPS_IN_A_ROW} minibatches in a row")
        if not finite:
            self._trained.clear_gradients()
        elif self.step >= self._config.critic_warmup:
            self._trained.step(self.learning_rate, norm)
            if self._average:
                self._average.update(self._trained.parameters)
        return finite


_EXCESS, _EXCESS_SQ = "ratio - 1", "(ratio - 1)^2"


def _means(totals: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Means over minibatches; moments of ρ − 1, which cancel less in rounding, become those of ρ."""
    means = {name: sum(values) / len(values) for name, values in totals.items()}
    if _EXCESS not in means:
        return means
    excess, square = means.pop(_EXCESS), means.pop(_EXCESS_SQ)
    first = 1.0 + totals[_EXCESS][0]
    return means | {
        "val/ratio": 1.0 + excess, "val/ratio_var": square - excess * excess, "val/ratio_first": first
    }  # fmt: skip


def _inputs(rollout: Rollout, rows: Sequence[int]) -> tuple[list[tuple[int, ...]], list[int], list[int]]:
    """(sequences, starts, response lengths) of some rows."""
    part = rollout.select(list(rows))
    return part.sequences, part.starts, [len(response.token_ids) for response in part.responses]
