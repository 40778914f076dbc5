"""Ridge regression in closed form, its strength chosen by leaving groups out.

Shapes: N observations, H features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

STRENGTHS = tuple(10.0**exponent for exponent in range(-4, 2))
"""Candidates for α, in units of the features' mean variance."""
FOLDS = 5


def ridge(features_NH: Tensor, targets_N: Tensor, groups: Sequence[int]) -> tuple[Tensor, float]:
    """(weight_H, bias) of argmin Σ (w·x + b − y)² + α·N·v̄·‖w‖², with v̄ the features' mean variance.

    α is the one of `STRENGTHS` with the least squared error on groups left out (five folds, so that
    tokens of one sequence, group g, are never on both sides). The bias is not penalised. In float64.
    """
    features_NH, targets_N = features_NH.double(), targets_N.double()
    folds_N = torch.tensor(groups) % FOLDS
    errors = torch.zeros(len(STRENGTHS), dtype=torch.float64)
    for fold in folds_N.unique().tolist() if len(set(groups)) > 1 else []:
        out_N = folds_N == fold
        if bool(out_N.all()):
            continue
        for index, (weight_H, bias) in enumerate(_path(features_NH[~out_N], targets_N[~out_N])):
            errors[index] += (features_NH[out_N] @ weight_H + bias - targets_N[out_N]).square().sum()
    best = int(errors.argmin()) if bool(errors.any()) else len(STRENGTHS) - 1
    return _path(features_NH, targets_N)[best]


def _path(features_NH: Tensor, targets_N: Tensor) -> list[tuple[Tensor, float]]:
    """The solution for each of `STRENGTHS`, from one eigendecomposition of the covariance."""
    mean_H, mean = features_NH.mean(dim=0), targets_N.mean()
    centred_NH = features_NH - mean_H
    count = len(targets_N)
    eigenvalues_H, vectors_HH = torch.linalg.eigh(centred_NH.T @ centred_NH / count)
    moments_H = vectors_HH.T @ (centred_NH.T @ (targets_N - mean) / count)
    unit = eigenvalues_H.mean().clamp(min=torch.finfo(torch.float64).tiny)
    weights = [vectors_HH @ (moments_H / (eigenvalues_H.clamp(min=0) + alpha * unit)) for alpha in STRENGTHS]
    return [(weight_H, float(mean - mean_H @ weight_H)) for weight_H in weights]
