"""One optimiser construction: master weights, Adam, clip, micro-batches, schedules.

Trained parameters are kept in float32 (float64 stays); frozen ones keep the type they were loaded in, and
the products run in the placement's type under `lm.placement.autocast`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lm.trainable import Rule, select_parameters
from trainer.config import AdamSection
from trainer.errors import CheckpointError

Gradients = list[Tensor | None]


class TrainedModel:
    """The trainable parameters of a model and their optimiser."""

    def __init__(
        self,
        model: PreTrainedModel,
        rule: Rule,
        config: AdamSection,
        learning_rate: float,
        head_factor: float = 1.0,
        key: str = "model.trainable",
    ) -> None:
        """Selects parameters by `rule`; a scalar head (`score`) learns at `head_factor` times the rate.

        Raises InputError at `key`, where the rule stands, for one that selects nothing.
        """
        names = set(select_parameters(model, rule, key))
        self.parameters = {name: p for name, p in model.named_parameters() if name in names}
        for parameter in self.parameters.values():
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()
        self._max_norm = config.max_grad_norm
        self._factors = (1.0, head_factor)
        self._adam = torch.optim.Adam(
            self._groups(),
            lr=learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
        )

    def _groups(self) -> list[dict[str, Any]]:
        """The body's parameters, then the head's."""
        head = [p for name, p in self.parameters.items() if name.startswith("score.")]
        body = [p for name, p in self.parameters.items() if not name.startswith("score.")]
        return [{"params": body}, {"params": head}]

    def gradient_norm(self) -> float:
        """2-norm over all gradients accumulated so far; NaN or infinite if one of them is."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        return float(nn.utils.get_total_norm(gradients)) if gradients else 0.0

    def take_gradients(self) -> Gradients:
        """Removes the accumulated gradients and hands them over."""
        taken = [p.grad for p in self.parameters.values()]
        self.clear_gradients()
        return taken

    def add_gradients(self, gradients: Gradients) -> None:
        """Adds what `take_gradients` took."""
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def clear_gradients(self) -> None:
        """Forgets the accumulated gradients."""
        self._adam.zero_grad(set_to_none=True)

    def step(self, learning_rate: float, norm: float) -> None:
        """Clips the gradients, whose norm is `norm`, steps, clears. Raises ValueError if it isn't finite."""
        if not math.isfinite(norm):
            raise ValueError(f"gradients of norm {norm} must be cleared, not applied")
        nn.utils.clip_grads_with_norm_(
            self.parameters.values(), self._max_norm, torch.tensor(norm, dtype=torch.float64)
        )
        for group, factor in zip(self._adam.param_groups, self._factors, strict=True):
            group["lr"] = learning_rate * factor
        self._adam.step()
        self.clear_gradients()

    def state_dict(self) -> dict[str, Any]:
        """Weights that train and the optimiser's state; live tensors, not copies."""
        weights = {name: p.detach() for name, p in self.parameters.items()}
        return {"weights": weights, "optimiser": self._adam.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`. Raises CheckpointError if other parameters train."""
        if state["weights"].keys() != self.parameters.keys():
            raise CheckpointError("the checkpoint trains other parameters than this configuration")
        for name, parameter in self.parameters.items():
            parameter.copy_(state["weights"][name])
        # Hyperparameters are the configuration's: a resumed run may have changed them on purpose.
        groups = self._adam.state_dict()["param_groups"]
        for group, kept in zip(groups, state["optimiser"]["param_groups"], strict=True):
            group["lr"] = kept["lr"]  # of the last step: the next one brings its own
        self._adam.load_state_dict({**state["optimiser"], "param_groups": groups})


def micro_batches(rows: Sequence[int], lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """`rows` in groups of at most `size`, like lengths together, so that little padding is computed."""
    ordered = sorted(rows, key=lambda row: lengths[row])
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def warmup_factor(step: int, steps: int, start: float = 0.1) -> float:
    """Share of the peak learning rate in `step`, counted from 0; linear, then 1.

    start + (1 − start) · step / steps. For 10 steps from 0.1: 0.1, 0.19, …, 0.91, 1.
    """
    return 1.0 if step >= steps else start + (1.0 - start) * step / steps


def cosine_factor(step: int, steps: int, end: float = 0.1) -> float:
    """Share of the peak learning rate in `step` of `steps`: from 1 to `end` (Ouyang et al. 2022, C).

    end + (1 − end) · (1 + cos(π · step / steps)) / 2: 1 at the start, 0.55 in the middle, 0.1 at the end.
    """
    return end + (1.0 - end) * (1.0 + math.cos(math.pi * min(step / steps, 1.0))) / 2.0


def schedule_factor(step: int, steps: int, warmup_steps: int, end: float = 0.1) -> float:
    """Warm-up over `warmup_steps`, then cosine to `end` over what remains of `steps`."""
    if step < warmup_steps:
        return warmup_factor(step, warmup_steps)
    return cosine_factor(step - warmup_steps, max(steps - warmup_steps, 1), end)
