"""The cost of an evaluation, measured beforehand."""

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import TensorDataset

import idsds
from idsds.evaluation.costs import seconds_by_the_clock
from idsds.training import processes


class Linear(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale
        self.fc = nn.Linear(3 * 8 * 16, 4)
        with torch.no_grad():
            self.fc.weight.copy_(torch.linspace(-1, 1, self.fc.weight.numel()).sin().view_as(self.fc.weight))
            self.fc.bias.zero_()

    def forward(self, images):
        return self.scale * self.fc(images.flatten(1))


def data(n=6, shift=0.0):
    return TensorDataset(torch.randn(n, 3, 8, 16, generator=torch.Generator().manual_seed(1)) + shift, torch.arange(n) % 4)


def test_costs_are_measured_without_doing_the_work(tmp_path, capsys):
    arguments = {"models": {"net": Linear()}, "methods": ["IxG", "Random"], "dataset": data(), "images": 6, "shard": 3}
    table = idsds.evaluate(**arguments, output=tmp_path, dry_run="measure")
    assert not list(tmp_path.iterdir())
    assert table.work.tolist() == ["deletions", "IxG", "Random"]
    assert table.images_left.tolist() == [6, 6, 6]
    np.testing.assert_allclose(
        table.seconds_left.astype(float), 6 / table.images_per_second.astype(float), atol=0.06
    )  # both are rounded to tenths
    assert (table.disk_mb >= 0).all()
    assert "total:" in capsys.readouterr().out
    idsds.evaluate(**arguments, output=tmp_path, progress=False)
    later = idsds.evaluate(**{**arguments, "methods": ["IxG", "Random", "IxG-SG"]}, output=tmp_path, dry_run="measure", progress=False)
    assert dict(zip(later.work, later.images_left, strict=True)) == {"deletions": 0, "IxG": 0, "Random": 0, "IxG-SG": 6}


def test_a_plan_says_the_seconds_by_the_clock():
    training = {"model": ["a", "a", "b", "c"], "seed": 0, "seconds_left": [60.0, 40.0, 80.0, 20.0], "side_by_side": [2, 2, 2, 1]}
    table = pd.DataFrame(training)
    assert seconds_by_the_clock(table) == 20 + processes.START + 100
    assert seconds_by_the_clock(table.drop(columns="side_by_side")) == 200
    assert seconds_by_the_clock(table.assign(seconds_left=0.5)) == 2, "too short to start processes for"
    assert seconds_by_the_clock(pd.DataFrame({"model": "a", "hours": [1.0, None]})) == 3600
