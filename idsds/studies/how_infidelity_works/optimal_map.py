"""The map that minimises infidelity, solved on pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: Eigenvalues of E[I I^T] below this fraction of the largest count as 0.
LEAST = 1e-10


#: Ridges among which cross-validation chooses, as multiples of the mean eigenvalue of E[I I^T].
RIDGES = (0.0, *(10 ** (power / 2) for power in range(-12, 7)))


def optimal_map(weights: Tensor, changes: Tensor, ridge: float = 0.0) -> Tensor:
    """Return the map of least infidelity, (P,), for perturbations (samples, P) and the changes of the logit (samples,), both float64.

    ``(E[I I^T] + ridge m)^-1 E[I change]``, with m the mean eigenvalue of ``E[I I^T]``; of several such maps the one of least norm.
    """
    values, vectors, along = _principal(weights, changes)
    return vectors @ (_inverse(values, ridge) * along)


def best_ridge(weights: Tensor, changes: Tensor) -> float:
    """Return the one of :data:`RIDGES` with the lowest generalised cross-validation error, ``E[(H change - change)^2] / (1 - trace(H) /
    samples)^2``.

    H, (samples, samples), maps the changes to the predictions of the map that is fitted to them.
    """
    values, _, along = _principal(weights, changes)
    scores = []
    for ridge in RIDGES:
        inverse = _inverse(values, ridge)
        found = inverse * along
        left = (changes.square().mean() - 2 * found @ along + (values * found.square()).sum()).clamp(min=0)
        freedom = 1 - float((values * inverse).sum()) / len(weights)
        scores.append(float(left) / freedom**2 if freedom > LEAST else float("inf"))
    return RIDGES[int(np.argmin(scores))]


def _principal(weights: Tensor, changes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return eigenvalues (P,) and eigenvectors (P, P) of E[I I^T], and E[I change] (P,) along these."""
    values, vectors = torch.linalg.eigh(weights.T @ weights / len(weights))
    return values, vectors, vectors.T @ (weights.T @ changes / len(weights))


def _inverse(values: Tensor, ridge: float) -> Tensor:
    """Return 1 / (value + ridge m), and 0 for eigenvalues that count as 0."""
    return torch.where(values > LEAST * values.max(), 1 / (values + ridge * values.mean()), torch.zeros_like(values))


def best_factor(predicted: np.ndarray, changes: np.ndarray) -> float:
    """Return the factor that minimises a map's infidelity: E[predicted change] / E[predicted^2], 0 for a map of zeros."""
    power = float((predicted**2).mean())
    return float((predicted * changes).mean()) / power if power > 0 else 0.0
