"""Correlations over random sets of pixels: nets that are linear in the pixels, and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from idsds.methods import create_method
from idsds.protocols.subsets import SIZES, pearson, random_sets
from tests.methods.nets import ConvNet, seeded
from tests.protocols.scoring import IDS, TARGETS, methods_of, score


class TestSubsets:
    def test_contributions_of_a_linear_net_are_perfect(self, linear, batch):
        for name in ("sensitivity_n", "faithfulness_correlation"):
            found = score(name, linear, methods_of(linear, "IxG", "Random"), batch)
            torch.testing.assert_close(found["IxG"]["score"], torch.ones(3, dtype=torch.float64))
            assert (found["Random"]["score"].abs() < 0.5).all()

    def test_it_is_scipys_correlation_of_sums_and_drops(self, batch):
        net = seeded(ConvNet, classes=3)
        found = score("sensitivity_n", net, methods_of(net, "IxG"), batch, samples=5)["IxG"]
        sets = random_sets(batch.images, SIZES, 5, seed=0, image_ids=IDS)
        maps = create_method("IxG", net)(batch.images, TARGETS, IDS)
        for image in range(3):
            expected = []
            for size in range(len(SIZES)):
                chosen = sets[image, 5 * size : 5 * size + 5].view(5, 1, 12, 16)
                assert (chosen.flatten(1).sum(dim=1) == round(SIZES[size] * 192)).all()
                left = net(torch.where(chosen, 0, batch.images[image]))[:, TARGETS[image]]
                expected.append(stats.pearsonr((maps[image] * chosen).flatten(1).sum(dim=1), (-left).detach()).statistic)
            np.testing.assert_allclose(found["by_size"][image], expected)
        torch.testing.assert_close(found["score"], found["by_size"].mean(dim=1))

    def test_bad_settings_and_constant_maps(self, linear, batch):
        with pytest.raises(ValueError, match=r"share must be in \(0, 1\), not 1\.5"):
            score("faithfulness_correlation", linear, methods_of(linear, "IxG"), batch, share=1.5)
        with pytest.raises(ValueError, match="samples must be a whole number of at least 2"):
            score("sensitivity_n", linear, methods_of(linear, "IxG"), batch, samples=1)
        assert pearson(torch.ones(1, 4), torch.arange(4.0)[None]).isnan().all()
