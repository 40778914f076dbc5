"""The four roles of a PPO step. run.py plugs gRPC clients in; a unit test plugs models in.

Shapes: B sequences, T response tokens (right-padded).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from trainer.ppo.rollout import Prompt, Response, Rollout


@dataclass(frozen=True)
class Scores:
    """Rewards of a rollout; a reward that could not be had is absent, never a number."""

    values: dict[int, float]
    """Row of the rollout → normalised reward."""
    failures: dict[int, str]
    """Row → why there is none."""


class RoleUnavailable(Exception):
    """A role can't be reached or does not answer in time; says which one, where, and the config key."""


class Policy(Protocol):
    """Generates with the current weights and takes new ones."""

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int], step: int) -> list[Response]:
        """One response to each prompt, all by exactly the weights of `step`.

        Raises StaleWeights if any token came from other weights.
        """
        ...

    def push(self, tensors: Iterable[tuple[str, Tensor]], step: int) -> None:
        """Makes `tensors` (names as in the state dict) the weights of `step` on every replica."""
        ...


class StaleWeights(Exception):
    """A response came from other weights than were asked for."""


class Reward(Protocol):
    """Scores responses."""

    def score(self, rollout: Rollout) -> Scores:
        """One scalar per sequence; higher is better."""
        ...


class Reference(Protocol):
    """The frozen model of the KL penalty."""

    def logprobs(self, rollout: Rollout) -> Tensor:
        """float32 ref_logprobs_BT at the sampling temperature; 0 where masked."""
        ...


class Critic(Protocol):
    """Predicts the return from each position; has its own optimiser and clip."""

    def prepare(self, rollout: Rollout, rewards_BT: Tensor) -> None:
        """Called before values are asked for, so that a critic may start from what is known now."""
        ...

    def values(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """values_BT, V_t read at the position before token t, 0 where masked; and after_B, read at the last.

        At least float32. after_B is what a truncated response may be bootstrapped with.
        """
        ...

    def update(
        self,
        rollout: Rollout,
        rows: Sequence[int],
        old_values_BT: Tensor,
        returns_BT: Tensor,
        divisor: float,
    ) -> Mapping[str, float]:
        """One optimisation step on the sequences `rows`; see loss.value_loss.

        Returns loss/value_avg, val/clipfrac_avg, lr/value and grad_norm/value (before the clip). If
        that norm isn't finite nothing has changed.
        """
        ...


@dataclass(frozen=True)
class Roles:
    """The roles that live outside the learner."""

    policy: Policy
    reward: Reward
    reference: Reference
