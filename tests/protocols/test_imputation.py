"""Imputation of removed pixels, and the curve of ROAD, against systems solved in full."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from idsds.protocols.imputation import SHARES, impute, road_curve
from tests.methods.nets import images_of
from tests.protocols.scoring import TARGETS


class TestImputation:
    def test_it_solves_the_full_system(self):
        images, removed = images_of(2, 5, 7), torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(3)) < 0.6
        found = impute(images, removed)
        for image, gone, values in zip(images, removed[:, 0], found, strict=True):
            system, right = np.eye(35), image.flatten(1).numpy().T.copy()
            for place in torch.nonzero(gone.flatten())[:, 0].tolist():
                y, x = divmod(place, 7)
                near = [
                    (v, u) for v in range(max(0, y - 1), min(5, y + 2)) for u in range(max(0, x - 1), min(7, x + 2)) if (v, u) != (y, x)
                ]
                weights = np.array([2.0 if v == y or u == x else 1.0 for v, u in near])
                system[place, [v * 7 + u for v, u in near]] -= weights / weights.sum()
                right[place] = 0
            np.testing.assert_allclose(values.flatten(1).numpy().T, np.linalg.solve(system, right), atol=1e-10)

    def test_what_stays_is_untouched_and_a_flat_image_stays_flat(self):
        removed = torch.zeros(1, 1, 6, 5, dtype=torch.bool)
        removed[..., 1:5, 1:] = True
        images = images_of(1, 6, 5)
        assert torch.equal(torch.where(removed, images, impute(images, removed)), images)
        torch.testing.assert_close(impute(torch.full_like(images, 0.3), removed), torch.full_like(images, 0.3))

    def test_nothing_left_is_refused(self):
        with pytest.raises(ValueError, match="every pixel of an image is removed"):
            impute(images_of(1, 3, 3), torch.ones(1, 1, 3, 3, dtype=torch.bool))

    def test_the_curve_is_that_of_images_imputed_by_hand(self, linear, batch):
        maps = batch.images.sum(dim=1, keepdim=True)
        curve = road_curve(linear, maps, batch.images, TARGETS, noise=0.0)
        for number, share in enumerate(SHARES):
            lowest = maps.flatten(1).sort(dim=1, descending=True).values[:, round(share * 192) - 1].view(-1, 1, 1, 1)
            probability = linear(impute(batch.images, maps >= lowest)).softmax(dim=1)[range(3), TARGETS]
            torch.testing.assert_close(curve[:, number], probability)
        with pytest.raises(ValueError, match="noise must be at least 0, not -1"):
            road_curve(linear, maps, batch.images, TARGETS, noise=-1)
