"""The cost of an evaluation, measured beforehand."""

import numpy as np
import pandas as pd

import idsds
from idsds.evaluation.costs import seconds_by_the_clock
from idsds.training import processes
from tests.evaluation.linear import Linear, data


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
