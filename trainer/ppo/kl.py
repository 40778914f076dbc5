"""Estimators of KL(p‖q) from samples of p, and the controllers of the penalty's coefficient β."""

import math
from typing import Protocol

from torch import Tensor

from trainer.errors import NotFinite


def k1(logprobs: Tensor, other: Tensor) -> Tensor:
    """log p − log q: unbiased, may be negative. The one in the reward. (Schulman, "Approximating KL")."""
    return logprobs - other


def k2(logprobs: Tensor, other: Tensor) -> Tensor:
    """½·(log p − log q)²: biased, small variance; policy/approxkl_avg."""
    return 0.5 * (logprobs - other).square()


def k3(logprobs: Tensor, other: Tensor) -> Tensor:
    """q/p − 1 − log(q/p): unbiased, never negative; only to look at, as a loss its gradient is wrong."""
    log_ratio = other - logprobs
    return log_ratio.expm1() - log_ratio


class KLController(Protocol):
    """Holds β. `value` is read before an iteration, `update` called after it."""

    @property
    def value(self) -> float:
        """The coefficient β."""
        ...

    def update(self, kl: float, episodes: int) -> None:
        """Takes the iteration's mean KL per sequence, in nats, and the number of its sequences."""
        ...

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs."""
        ...

    def load_state_dict(self, state: dict[str, float]) -> None:
        """The inverse of `state_dict`."""
        ...


class FixedKL:
    """β stays as it is (Ouyang et al. 2022)."""

    def __init__(self, value: float) -> None:
        """`value` is β."""
        self.value = value

    def update(self, kl: float, episodes: int) -> None:
        """Changes nothing."""

    def state_dict(self) -> dict[str, float]:
        """β, so that a checkpoint says what was used."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Keeps the configured β: it is a setting, which a resumed run may have changed on purpose."""


class AdaptiveKL:
    """β follows the KL: e = clip(KL/target − 1, −0.2, 0.2); β ← β·(1 + e·n/horizon).

    Ziegler et al. 2019, section 2.2, and LHP. KL is summed over a sequence; n and `horizon` count episodes.
    """

    def __init__(self, value: float, target: float, horizon: float) -> None:
        """`value` is the first β, `target` in nats per sequence."""
        self.value = value
        self._target = target
        self._horizon = horizon

    def update(self, kl: float, episodes: int) -> None:
        """One proportional step. Raises NotFinite for a KL that isn't."""
        if not math.isfinite(kl):
            raise NotFinite(f"the mean KL to the reference is {kl}; the adaptive β has nothing to follow")
        error = min(max(kl / self._target - 1.0, -0.2), 0.2)
        self.value *= 1.0 + error * episodes / self._horizon

    def state_dict(self) -> dict[str, float]:
        """The current β."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """The inverse of `state_dict`."""
        self.value = state["value"]


def make_controller(kl_coef: float, adaptive: bool, target: float, horizon: float) -> KLController:
    """The controller a configuration asks for."""
    return AdaptiveKL(kl_coef, target, horizon) if adaptive else FixedKL(kl_coef)
