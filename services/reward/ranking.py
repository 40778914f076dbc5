"""What follows from several rewards: an order with ties, and the probability of a preference."""

import math
from collections.abc import Sequence


def order(rewards: Sequence[float]) -> list[tuple[int, int]]:
    """(index, rank) of each reward, best first; equal rewards share a rank and keep their order.

    Standard competition ranking: 1 2 2 4.
    """
    indices = sorted(range(len(rewards)), key=lambda index: -rewards[index])
    ranked: list[tuple[int, int]] = []
    for place, index in enumerate(indices, start=1):
        ties = bool(ranked) and rewards[ranked[-1][0]] == rewards[index]
        ranked.append((index, ranked[-1][1] if ties else place))
    return ranked


def preference(first: float, second: float, temperature: float) -> float:
    """P(first is preferred) = σ((first − second) / temperature), from raw rewards.

    Bradley and Terry 1952; with temperature 1 what the reward model was trained to say
    (Ouyang et al. 2022, equation 1).
    """
    scaled = (first - second) / temperature
    if scaled >= 0:
        return 1.0 / (1.0 + math.exp(-scaled))
    return math.exp(scaled) / (1.0 + math.exp(scaled))
