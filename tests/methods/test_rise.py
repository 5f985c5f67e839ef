"""RISE against scikit-image's interpolation and its own formula as a loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.transform import resize

from idsds.methods import create_method
from idsds.methods.rise import cell_size, random_masks, rise_masks
from tests.methods.nets import ConvNet, images_of, seeded

IMAGES, TARGETS, IDS = images_of(3, 30, 44), torch.tensor([0, 3, 1]), ["a", "b", "c"]


@pytest.mark.parametrize(("height", "width", "cells"), [(30, 44, 8), (32, 32, 8), (9, 14, 3), (6, 5, 1)])
def test_masks_are_those_of_scikit_image(height: int, width: int, cells: int) -> None:
    generator = np.random.default_rng(0)
    grids = (generator.random((5, cells, cells)) < 0.5).astype(np.float64)
    size = cell_size(height, width, cells)
    shifts = np.stack([generator.integers(0, side, 5) for side in size], axis=1)
    found = rise_masks(torch.from_numpy(grids), torch.from_numpy(shifts), height, width)
    assert found.shape == (5, 1, height, width)
    up = [(cells + 1) * side for side in size]
    for mask, grid, (row, column) in zip(found[:, 0], grids, shifts, strict=True):
        wanted = resize(grid, up, order=1, mode="reflect", anti_aliasing=False)[row : row + height, column : column + width]
        assert np.allclose(mask, wanted, rtol=0, atol=1e-6)  # float32


def test_formula_as_a_loop() -> None:
    model, baseline = seeded(ConvNet), images_of(1, 30, 44, seed=4)
    masks = torch.rand(7, 30, 44, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wanted = torch.zeros(3, 30, 44, dtype=torch.float64)
    with torch.no_grad():
        for mask in masks:
            probability = model(mask * IMAGES + (1 - mask) * baseline).softmax(dim=1)
            wanted += probability[torch.arange(3), TARGETS, None, None] * mask / (7 * 0.1)
    for batch in (1, 2, 5, 64):
        method = create_method("RISE", model, batch=batch, masks=masks, baseline=baseline)
        assert method.passes == (7, 0)
        assert torch.allclose(method(IMAGES, TARGETS)[:, 0], wanted, rtol=1e-9, atol=0)


def test_under_autocast_the_sum_over_masks_is_exact() -> None:
    model, images = seeded(ConvNet, dtype=torch.float32), IMAGES.float()
    masks = torch.rand(50, 30, 44, generator=torch.Generator().manual_seed(3))
    wanted = torch.zeros(3, 30, 44, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = create_method("RISE", model, batch=3, masks=masks)(images, TARGETS)[:, 0]
        with torch.no_grad():
            for mask in masks:
                probability = model(mask * images).float().softmax(dim=1)
                wanted += probability[torch.arange(3), TARGETS, None, None].double() * mask / (50 * 0.1)
    # float32 sums of 50; the model's own 16 bits are the same in both.
    assert torch.allclose(found.double(), wanted, rtol=1e-5, atol=0)


def test_masks_depend_on_the_seed_alone_and_are_made_in_pieces() -> None:
    whole = random_masks(0, 400, 8, 0.1, IMAGES)(0, 400)
    pieces = [random_masks(0, 400, 8, 0.1, IMAGES[:1])(start, start + 90) for start in range(0, 400, 90)]
    assert torch.equal(whole, torch.cat(pieces))
    assert not torch.equal(whole, random_masks(1, 400, 8, 0.1, IMAGES)(0, 400))
    # 400 masks of 64 cells, each shown with chance 0.1: the mean lies within 5 standard errors, cells counted as independent.
    assert abs(float(whole.mean()) - 0.1) < 5 * (0.1 * 0.9 / (400 * 64)) ** 0.5
    assert whole.min() >= 0
    assert whole.max() <= 1


def test_images_do_not_see_each_other() -> None:
    method = create_method("RISE-U", seeded(ConvNet), samples=20)
    together = method(IMAGES, TARGETS, IDS)
    alone = torch.cat([method(IMAGES[i : i + 1], TARGETS[i : i + 1], IDS[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, rtol=1e-9, atol=0)


def test_defaults_are_the_published_ones() -> None:
    model = seeded(ConvNet)
    assert {k: create_method("RISE", model).options[k] for k in ("samples", "cells", "probability")} == {
        "samples": 1000,
        "cells": 8,
        "probability": 0.1,
    }
    assert create_method("RISE-U", model).options["baseline"] == "uniform"
    assert create_method("RISE (paper)", model).options["probability"] == 0.5


def test_masks_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 1, 30, 40\), wanted \(N, 1, 30, 44\)"):
        create_method("RISE", seeded(ConvNet), masks=torch.rand(4, 1, 30, 40))(IMAGES, TARGETS)
