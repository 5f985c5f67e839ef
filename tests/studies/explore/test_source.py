"""The source of the explorer: the orders of the images, and the maps made again."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from idsds.common.registry import UnknownNameError
from idsds.statistics.agreement import disagreement
from idsds.studies.explore.source import ORDERS
from tests.evaluation.linear import Linear
from tests.studies.explore.conftest import METHODS, data, explorer, own


@pytest.mark.parametrize("kind", [0, 1], ids=["frame", "folder"])
def test_maps_are_those_that_were_scored(run, kind):
    view = explorer(run[kind])
    example, notes = view.example()
    assert notes == []
    assert set(example.maps) == {*METHODS, "<b>own"}
    index = int(view.image)
    image = data()[index][0]
    assert np.allclose(example.picture, image.movedim(0, -1), atol=1e-6)
    weight = Linear().fc.weight[data()[index][1]].detach().view(3, 8, 16)
    assert np.allclose(example.maps["IxG"], (weight * image).sum(0), atol=1e-5)
    assert example.maps["IxG"].shape == (8, 16)


def test_another_net_or_method_is_never_taken_for_the_one_that_was_scored(run):
    torch.manual_seed(1)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(384, 4))
    example, notes = explorer(run[1], models={"net": other}).example()
    assert example.maps["IxG"].shape == (4, 4)  # the recorded patch sums
    assert "cannot be made again as scored" in notes[0]
    assert "IxG" in notes[0]
    assert "Random" not in notes[0]  # does not depend on the net
    example, notes = explorer(run[1], methods={"<b>own": lambda images, targets: own(images, targets) ** 2}).example()
    assert "<b>own" in notes[0]
    assert example.maps["<b>own"].shape == (4, 4)
    assert example.maps["IxG"].shape == (8, 16)


def test_orders_are_those_of_the_scores(run):
    records = run[0].copy()
    records.loc[(records["method"] == "IxG") & (records["image_id"] == "3"), "score"] = np.nan
    view = explorer(records).select(method="IxG")
    scores = records[records["method"] == "IxG"].set_index("image_id")["score"]
    worst = view.select(order=ORDERS[0]).images
    assert worst[:-1] == list(scores.dropna().sort_values(kind="stable").index)
    assert worst[-1] == "3"
    assert scores[view.select(order=ORDERS[1]).images[0]] == scores.max()
    assert view.select(order="most undefined").images[0] == "3"
    assert view.select(order="as evaluated").images == list(scores.index)
    low, high = view.source.extremes(view.case, "IxG")
    assert low == worst[:4]
    assert high == worst[:-1][::-1][:4]
    lower = explorer(records.assign(direction="lower is better")).select(method="IxG", order=ORDERS[0])
    assert scores[lower.images[0]] == scores.max()
    with pytest.raises(UnknownNameError, match="worst score first"):
        view.select(order="wurst score first")


def test_disagreement_is_one_minus_the_mean_rank_correlation_of_pairs(run):
    records, folder = run
    found = disagreement(records)
    assert disagreement(folder).sort_index().tolist() == found.sort_index().tolist()
    for image_id, rows in records[records["family"] != "control"].groupby("image_id"):
        pairs = [spearmanr(a, b).statistic for a, b in combinations(rows["patch_sums"], 2)]
        assert found[image_id] == pytest.approx(1 - np.mean(pairs))
    flat = records.copy()
    flat.loc[flat["method"] == "IxG", "patch_sums"] = flat["patch_sums"].map(np.zeros_like)
    assert np.allclose(disagreement(flat), disagreement(records[records["method"] != "IxG"]))
    assert disagreement(records[records["method"] == "IxG"]).isna().all()
    scores = records.drop(columns="patch_sums")
    assert disagreement(scores)["0"] == pytest.approx(scores[(scores["image_id"] == "0") & (scores["family"] != "control")]["score"].std())
