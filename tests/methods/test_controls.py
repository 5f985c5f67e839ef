"""Controls against scipy and closed forms."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from idsds.methods import create_method
from tests.methods.nets import ConvNet, images_of, seeded

IMAGES, TARGETS, IDS = images_of(3, 9, 14), torch.tensor([0, 3, 1]), ["a", "b", "c"]


def test_edges_are_scipys_sobel() -> None:
    found = create_method("Edges", seeded(ConvNet))(IMAGES, TARGETS)[:, 0]
    for image, map_ in zip(IMAGES.numpy(), found, strict=True):
        # Scipy's kernel is [1, 2, 1] x [-1, 0, 1], eight times ours.
        slopes = [ndimage.sobel(channel, axis=axis, mode="nearest") / 8 for channel in image for axis in (0, 1)]
        assert np.allclose(map_, np.sqrt(np.sum(np.square(slopes), axis=0)), rtol=0, atol=1e-12)


def test_center_is_a_gaussian() -> None:
    found = create_method("Center", seeded(ConvNet), sigma=0.3)(IMAGES, TARGETS)[0, 0]
    row, column = 2, 10
    distance = ((row + 0.5) / 9 - 0.5) ** 2 + ((column + 0.5) / 14 - 0.5) ** 2
    assert np.isclose(found[row, column], np.exp(-distance / (2 * 0.3**2)))
    assert torch.allclose(found, found.flip(0))
    assert torch.allclose(found, found.flip(1))
    assert found.argmax() // 14 == 4


def test_random_is_standard_normal_and_takes_noise() -> None:
    images = images_of(4, 60, 60)
    found = create_method("Random", seeded(ConvNet))(images, torch.zeros(4, dtype=torch.long), list("abcd"))
    assert abs(float(found.mean())) < 5 / (4 * 3600) ** 0.5
    assert abs(float(found.var()) - 1) < 5 * (2 / (4 * 3600)) ** 0.5
    noise = torch.randn(3, 1, 3, 9, 14, dtype=torch.float64)
    assert torch.equal(create_method("Random", seeded(ConvNet), noise=noise)(IMAGES, TARGETS, IDS), noise[:, 0, :1])
