"""The value model: separate from the policy, started from the reward model (Ouyang et al. 2022, C.4).

Shapes: B sequences, T response tokens (right-padded), H hidden size, N positions, flattened.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lm.errors import ModelLoadError
from lm.loading import LoadedReward
from lm.logprobs import unflatten
from lm.padding import right_pad
from lm.placement import Placement, autocast
from lm.rewards import is_decoder
from trainer.optimisation import TrainedModel, micro_batches
from trainer.ppo.advantages import gae
from trainer.ppo.config import CriticSection
from trainer.ppo.loss import value_loss
from trainer.ppo.ridge import ridge
from trainer.ppo.rollout import Rollout


class ValueCritic:
    """roles.Critic on a reward model's body and head, with its own Adam, rate and clip.

    Values are on the scale of the normalised reward: V = (score − reward_mean) / reward_std at first.
    """

    def __init__(
        self, reward: LoadedReward, config: CriticSection, placement: Placement, gamma: float = 1.0
    ) -> None:
        """Takes over `reward`, loaded at `placement`; `gamma` is the discount of the returns.

        Raises ModelLoadError for an encoder, whose states see what comes after a position, and for a
        score layer that isn't linear.
        """
        if not is_decoder(reward.model):
            raise ModelLoadError(f"{reward.model_id}: a critic needs a causal model; this is an encoder")
        self._model = reward.model
        self._head = _value_head(reward)
        self._model.score = self._head
        self._config = config
        self._placement = placement
        self._gamma = gamma
        self._trained = TrainedModel(
            self._model, config.trainable, config, config.learning_rate, key="critic.trainable"
        )
        self._head_fitted = not config.refit_head

    @torch.no_grad()
    def prepare(self, rollout: Rollout, rewards_BT: Tensor) -> None:
        """Once, if `refit_head`: the head becomes the ridge fit of the rollout's discounted reward to go.

        A reward model's head knows only the last token: read earlier it predicts worse than a constant.
        """
        if self._head_fitted:
            return
        mask_BT = rollout.loss_mask_BT
        _, returns_BT = gae(rewards_BT, torch.zeros_like(rewards_BT), mask_BT, self._gamma, lam=1.0)
        features, targets, groups = [], [], []
        for rows in self._micro_batches(rollout, range(len(rollout.responses))):
            hidden_NH, counts = self._hidden(rollout, rows)
            for row, states_NH in zip(rows, hidden_NH.cpu().split(counts), strict=True):
                features.append(states_NH[:-1])
                targets.append(returns_BT[row, : len(states_NH) - 1])
                groups += [row] * (len(states_NH) - 1)
        weight_H, bias = ridge(torch.cat(features), torch.cat(targets), groups)
        self._head.weight.copy_(weight_H[None])
        self._head.bias.fill_(bias)
        self._head_fitted = True

    @torch.no_grad()
    def values(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """(values_BT, after_B); see roles.Critic."""
        shape = rollout.loss_mask_BT.shape
        values_BT = torch.zeros(shape, dtype=self._head.weight.dtype)
        after_B = torch.zeros(shape[0], dtype=self._head.weight.dtype)
        for rows in self._micro_batches(rollout, range(shape[0])):
            flat_N, counts = self._flat_values(rollout, rows)
            for row, values_T in zip(rows, flat_N.cpu().split(counts), strict=True):
                values_BT[row, : len(values_T) - 1] = values_T[:-1]
                after_B[row] = values_T[-1]
        return values_BT, after_B

    def update(
        self,
        rollout: Rollout,
        rows: Sequence[int],
        old_values_BT: Tensor,
        returns_BT: Tensor,
        divisor: float,
    ) -> Mapping[str, float]:
        """One step on the sequences `rows`; see roles.Critic. The loss's weight is `vf_coef`."""
        totals = torch.zeros(2, dtype=torch.float64)
        for micro in self._micro_batches(rollout, rows):
            flat_N, counts = self._flat_values(rollout, micro)
            width = max(counts) - 1
            fixed = (old_values_BT, returns_BT, rollout.loss_mask_BT)
            old_BT, targets_BT, mask_BT = (x_BT[micro, :width].to(flat_N.device) for x_BT in fixed)
            values_BT = unflatten(flat_N, counts)[:, :width]
            share = value_loss(values_BT, old_BT, targets_BT, mask_BT, divisor, self._config.cliprange_value)
            (self._config.vf_coef * share.loss).backward()
            totals += torch.stack([part.detach().double().cpu() for part in share])
        norm = self._trained.gradient_norm()
        if math.isfinite(norm):
            self._trained.step(self._config.learning_rate, norm)
        self._trained.clear_gradients()
        loss, clipfrac = totals.tolist()
        return {
            "loss/value_avg": loss,
            "val/clipfrac_avg": clipfrac,
            "grad_norm/value": norm,
            "lr/value": self._config.learning_rate,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on bit for bit; live tensors, not copies."""
        return {"model": self._trained.state_dict(), "head_fitted": self._head_fitted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`. Raises CheckpointError if other parameters train."""
        self._trained.load_state_dict(state["model"])
        self._head_fitted = bool(state["head_fitted"])

    def _micro_batches(self, rollout: Rollout, rows: Sequence[int]) -> list[list[int]]:
        lengths = [len(sequence) for sequence in rollout.sequences]
        return list(micro_batches(rows, lengths, self._config.micro_batch_size))

    def _flat_values(self, rollout: Rollout, rows: Sequence[int]) -> tuple[Tensor, list[int]]:
        """values_N of `rows`, each at its response length + 1 positions, and those counts."""
        hidden_NH, counts = self._hidden(rollout, rows)
        return self._head(hidden_NH)[:, 0], counts

    def _hidden(self, rollout: Rollout, rows: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Last states, from the position before the first response token to the last; and their counts.

        The head itself stays out of autocast: bfloat16 would leave a value three digits.
        """
        part = rollout.select(list(rows))
        ids_BL, lengths_B = right_pad(part.sequences, device=self._model.device)
        with autocast(self._placement):
            hidden_BLH = self._model.base_model(input_ids=ids_BL, use_cache=False)[0]
        positions_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        starts_B = torch.tensor(part.starts, device=ids_BL.device)
        wanted_BL = (positions_L >= starts_B[:, None] - 1) & (positions_L < lengths_B[:, None])
        counts = [len(response.token_ids) + 1 for response in part.responses]
        return hidden_BLH[wanted_BL].to(self._head.weight.dtype), counts


def _value_head(reward: LoadedReward) -> nn.Linear:
    """Linear(H, 1) with bias: the score layer, shifted and scaled to the normalised reward."""
    score = reward.model.get_submodule("score")
    if not isinstance(score, nn.Linear):
        kind = type(score).__name__
        raise ModelLoadError(f"{reward.model_id}: a critic needs a linear score layer; this is a {kind}")
    weight_1H = score.weight.detach()
    dtype = torch.float64 if weight_1H.dtype == torch.float64 else torch.float32
    head = nn.Linear(weight_1H.shape[1], 1, bias=True, dtype=dtype, device=weight_1H.device)
    bias = 0.0 if score.bias is None else float(score.bias)
    with torch.no_grad():
        head.weight.copy_(weight_1H.to(dtype) / reward.reward_std)
        head.bias.fill_((bias - reward.reward_mean) / reward.reward_std)
    return head
