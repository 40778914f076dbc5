"""Statistics of comparisons: small pure functions over one number per prompt.

Shapes: N prompts, R bootstrap resamples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000
Z_95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its two-sided 95 % interval."""

    mean: float
    low: float
    high: float
    n: int
    """Prompts it rests on."""
    method: str
    """How the interval was made: "wilson" or "bootstrap"."""


def wilson(successes: float, n: int) -> Estimate:
    """Wilson's score interval of a proportion, 95 %.

    Centre (p + z²/2n) / (1 + z²/n), half-width z·√(p(1−p)/n + z²/4n²) / (1 + z²/n)
    (Wilson 1927; RECIPE section 6: 60 of 100 gives 0.5020 to 0.6906).
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} is no proportion")
    share, z2 = successes / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At 0 and n a bound is the mean itself; rounding must not push it past.
    return Estimate(
        share, max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)), n, "wilson"
    )


def resample_weights(n: int, seed: int, resamples: int = RESAMPLES) -> Floats:
    """weights_RN: how often each of n prompts was drawn in each of R resamples with replacement."""
    generator = np.random.default_rng(seed)
    draws_RN = generator.integers(0, n, size=(resamples, n))
    weights_RN = np.zeros((resamples, n))
    np.add.at(weights_RN, (np.arange(resamples)[:, None], draws_RN), 1.0)
    return weights_RN


def bootstrap(
    statistic: Callable[[Floats], Floats], n: int, seed: int, resamples: int = RESAMPLES
) -> Estimate:
    """Percentile bootstrap over prompts (Efron 1979), 95 %.

    `statistic` maps weights_RN to R values; all weights 1 give the estimate itself. The same seed
    gives the same interval.
    """
    mean = float(statistic(np.ones((1, n)))[0])
    values_R = statistic(resample_weights(n, seed, resamples))
    low, high = np.quantile(values_R, [0.025, 0.975])
    return Estimate(mean, float(low), float(high), n, "bootstrap")


def mean_estimate(values_N: Floats, seed: int) -> Estimate:
    """The mean of one value per prompt with its bootstrap interval."""
    return bootstrap(lambda weights_RN: weights_RN @ values_N / weights_RN.sum(1), len(values_N), seed)


def outcomes(scores_a_N: Floats, scores_b_N: Floats) -> Floats:
    """outcome_N of B against A by a judge's scores: 1 where B is higher, 0 where A is, ½ for a tie."""
    return np.where(scores_b_N > scores_a_N, 1.0, np.where(scores_b_N < scores_a_N, 0.0, 0.5))


def win_rate(outcomes_N: Floats, seed: int) -> Estimate:
    """Share of prompts where B wins, a tie counting ½: Wilson if there are no ties, else bootstrap."""
    if not np.any(outcomes_N == 0.5):
        return wilson(float(outcomes_N.sum()), len(outcomes_N))
    return mean_estimate(outcomes_N, seed)


def length_controlled_win_rate(outcomes_N: Floats, length_differences_N: Floats, seed: int) -> Estimate:
    """Win rate of B had its responses been as long as A's, by logistic regression.

    P(B wins) = σ(θ + φ·tanh(Δ/s)), Δ the length difference B − A in tokens and s its root mean square;
    the answer is σ(θ), the fit at Δ = 0 (the length term of AlpacaEval 2: Dubois et al. 2024, eq. 2).
    Bootstrap interval over prompts.
    """
    scale = math.sqrt(float(np.mean(length_differences_N**2))) or 1.0
    control_N = np.tanh(length_differences_N / scale)
    return bootstrap(
        lambda weights_RN: _sigmoid(_fit_logistic(control_N, outcomes_N, weights_RN)[:, 0]),
        len(outcomes_N),
        seed,
    )


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))


def _fit_logistic(x_N: Floats, y_N: Floats, weights_RN: Floats) -> Floats:
    """(θ, φ)_R2 of P(y = 1) = σ(θ + φx) for each row of weights, by Newton's method.

    A ridge of 0.01 keeps the answer finite where every prompt is won; beside dozens of prompts it
    moves a win rate by less than 0.001.
    """
    ridge = 0.01
    design_N2 = np.stack([np.ones_like(x_N), x_N], axis=1)
    fit_R2 = np.zeros((len(weights_RN), 2))
    for _ in range(50):
        p_RN = _sigmoid(fit_R2 @ design_N2.T)
        gradient_R2 = (weights_RN * (y_N - p_RN)) @ design_N2 - ridge * fit_R2
        curvature_R22 = np.einsum("rn,ni,nj->rij", weights_RN * p_RN * (1 - p_RN), design_N2, design_N2)
        curvature_R22 += ridge * np.eye(2)
        step_R2 = np.linalg.solve(curvature_R22, gradient_R2[..., None])[..., 0]
        # Newton overshoots where σ is flat; a step of 2 on the logit scale never does harm.
        fit_R2 = fit_R2 + np.clip(step_R2, -2, 2)
        if float(np.abs(step_R2).max()) < 1e-9:
            break
    return fit_R2


def best_of_n_kl_bound(n: int) -> float:
    """Upper bound on the KL of best-of-n from its base policy: log n − (n − 1)/n nats.

    A bound, not the value (Beirami et al. 2024, theorem 1).
    """
    return math.log(n) - (n - 1) / n


def best_of_n_win_bound(n: int) -> float:
    """Upper bound on the win rate of best-of-n against one sample of its base: n/(n + 1) (same source)."""
    return n / (n + 1)
