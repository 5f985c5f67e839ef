"""The optimal map, against its closed forms."""

import numpy as np
import pytest
import torch

from idsds.studies.how_infidelity_works.optimal_map import RIDGES, best_factor, best_ridge, optimal_map


def test_the_optimal_map_of_a_linear_model_is_its_gradient():
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(400, 12, generator=generator, dtype=torch.float64)
    gradient = torch.randn(12, generator=generator, dtype=torch.float64)
    assert torch.allclose(optimal_map(weights, weights @ gradient), gradient, atol=1e-10)
    noisy = weights @ gradient + torch.randn(400, generator=generator, dtype=torch.float64)
    oracle = np.linalg.lstsq(weights.numpy(), noisy.numpy(), rcond=None)[0]
    assert np.allclose(optimal_map(weights, noisy).numpy(), oracle, atol=1e-10)
    few = slice(0, 5)  # fewer perturbations than unknowns: the least norm, which numpy's has too
    oracle = np.linalg.lstsq(weights[few].numpy(), noisy[few].numpy(), rcond=None)[0]
    assert np.allclose(optimal_map(weights[few], noisy[few]).numpy(), oracle, atol=1e-8)


def test_the_ridge_is_that_of_least_cross_validation():
    """By the matrix H itself; a map that says nothing of the changes is shrunk to next to nothing, one that says all is not shrunk."""
    rng = np.random.default_rng(7)
    weights, noise = rng.normal(size=(60, 40)), rng.normal(size=60)
    true = rng.normal(size=40)
    for changes in (noise, weights @ true, weights @ true + 3 * noise):
        second, scores = weights.T @ weights / 60, []
        ridges = [factor * np.trace(second) / 40 for factor in RIDGES]
        for ridge in ridges:
            hat = weights @ np.linalg.inv(second + ridge * np.eye(40)) @ weights.T / 60
            scores.append((((hat @ changes - changes) ** 2).mean()) / (1 - np.trace(hat) / 60) ** 2)
        given = torch.tensor(weights), torch.tensor(changes)
        found = best_ridge(*given)
        assert found == RIDGES[int(np.argmin(scores))]
        oracle = np.linalg.solve(second + found * np.trace(second) / 40 * np.eye(40), weights.T @ changes / 60)
        assert np.allclose(optimal_map(*given, found).numpy(), oracle, atol=1e-8)
    assert best_ridge(torch.tensor(weights), torch.tensor(weights @ true)) <= 1e-5
    assert best_ridge(torch.tensor(weights), torch.tensor(noise)) >= 1


def test_the_best_factor_is_that_of_least_squares():
    predicted, changes = np.random.default_rng(2).normal(size=(2, 50))
    oracle = np.linalg.lstsq(predicted[:, None], changes, rcond=None)[0]
    assert best_factor(predicted, changes) == pytest.approx(oracle.item())
    assert best_factor(np.zeros(5), np.ones(5)) == 0
