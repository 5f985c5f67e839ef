"""Images that belong together are drawn together, and the direction of a score decides which is best."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import idsds
from idsds.common.registry import UnknownNameError
from idsds.models.weights import save_checkpoint
from idsds.statistics import (
    images_needed,
    kendalls_w,
    krippendorffs_alpha,
    nested_bootstrap,
    paired_differences,
    rank,
    rank_agreement,
    rank_each,
    ranking_with_ties,
)
from idsds.statistics.scores import frames


def crops(photos: int, each: int, effect: float = 0.3, rng: np.random.Generator | None = None, methods=("a", "b"), within: float = 0.1):
    """Crops of a photo that share most of their score; ``a`` is better by ``effect``, which varies from photo to photo."""
    rng = rng or np.random.default_rng(0)
    rows = []
    for photo in range(photos):
        shared = {method: rng.normal(effect * (method == "a"), 0.3) for method in methods}
        for crop in range(each):
            for method in methods:
                rows.append((f"{photo:03d}", f"{photo:03d}/{crop}", method, shared[method] + rng.normal(0, within)))
    return pd.DataFrame(rows, columns=["group", "image_id", "method", "score"]).assign(model="m")


def test_an_interval_over_groups_is_that_of_the_groups_means():
    records = crops(20, 5)
    grouped = rank(records, resamples=4000)
    means = records.groupby(["group", "method"], as_index=False)["score"].mean().rename(columns={"group": "image_id"}).assign(model="m")
    pd.testing.assert_frame_equal(grouped[["mean", "low", "high"]], rank(means, resamples=4000)[["mean", "low", "high"]], rtol=1e-9)
    assert set(grouped["interval"]) == {"95 % BCa bootstrap over groups of images"}
    alone = rank(records.drop(columns="group"))
    assert (grouped["high"] - grouped["low"] > 1.5 * (alone["high"] - alone["low"])).all(), "crops of a photo are not independent"


def test_a_group_per_image_changes_nothing():
    records = crops(20, 1)
    for function in (rank, paired_differences, kendalls_w):
        pd.testing.assert_frame_equal(function(records), function(records.drop(columns="group")))


def test_coverage_over_groups_is_what_it_says():
    """500 samples of 20 photos with 5 crops: the share of 95 % intervals that hold the truth, and that of intervals over single crops."""
    rng, held, naive = np.random.default_rng(1), 0, 0
    for _ in range(500):
        records = crops(20, 5, rng=rng)
        for grouped in (True, False):
            table = paired_differences(records if grouped else records.drop(columns="group"), resamples=400, permutations=1).iloc[0]
            inside = table["low"] <= 0.3 <= table["high"]
            held, naive = held + (inside and grouped), naive + (inside and not grouped)
    # The standard error of a share of .95 among 500 is .01; BCa over 20 units is a little too narrow.
    assert 0.91 <= held / 500 <= 0.98
    assert naive / 500 < 0.75


def test_signs_flip_with_the_group():
    """Under no difference a p over single crops is far too small; over groups it is that of the groups' sums."""
    records = crops(8, 5, effect=0.0)
    p = paired_differences(records)["p"].iloc[0]
    sums = records.groupby(["group", "method"])["score"].sum().unstack()
    differences = (sums["a"] - sums["b"]).to_numpy()
    signs = 1 - 2 * ((np.arange(2**8)[:, None] >> np.arange(8)) & 1)
    assert p == pytest.approx(np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9))


def test_other_statistics_draw_groups_too():
    records = crops(12, 4, methods=("a", "b", "c"))
    assert kendalls_w(records)["interval"].iloc[0].endswith("groups of images")
    seeded = pd.concat([records.assign(seed=0), records.assign(seed=1, score=records["score"] + 0.01)])
    nested = nested_bootstrap(seeded)
    assert (nested["high"] - nested["low"] > 0.2).all()
    conditions = pd.concat([records.assign(label="x"), records.assign(label="y", score=-records["score"])])
    agreed = rank_agreement(conditions, "label")
    assert agreed.loc[agreed["first"] != agreed["second"], "interval"].iloc[0].endswith("groups of images")
    assert rank_each(conditions, "label")["place"].between(1, 3).all()
    needed = images_needed(records, "a", "b").iloc[0]
    assert needed["count"] == 12
    assert needed["images"] % 4 == 0, "a further photo comes with four crops"


def test_an_image_in_two_groups_is_refused():
    records = crops(3, 2)
    records.loc[(records["method"] == "a") & (records["image_id"] == "000/0"), "group"] = "other"
    with pytest.raises(ValueError, match="belongs to several groups"):
        rank(records)


def test_the_best_comes_first_where_lower_is_better():
    records = crops(10, 1).assign(direction="lower is better")
    assert rank(records)["method"].tolist() == ["b", "a"]
    assert set(rank(records)["direction"]) == {"lower is better"}
    assert ranking_with_ties(records)[["method", "place"]].values.tolist() == [["b", 1], ["a", 2]]
    both = [paired_differences(part, pairs=[("a", "b")]).iloc[0] for part in (records, records.assign(direction="higher is better"))]
    assert both[0]["difference"] == both[1]["difference"] > 0
    assert both[0]["a_beats_b"] == pytest.approx(1 - both[1]["a_beats_b"])
    assert both[0]["direction"] == "lower is better"
    places = rank_each(records.assign(label="x"), "label").set_index("method")["place"]
    assert places["b"] == 1
    opposite = pd.concat([records.assign(label="x"), records.assign(label="y", direction="higher is better", score=-records["score"])])
    agreed = rank_agreement(opposite, "label").set_index(["first", "second"])["tau"]
    assert agreed["x", "y"] == pytest.approx(1), "both put b first"
    with pytest.raises(ValueError, match=r"unknown direction 'up'"):
        rank(records.assign(direction="up"))


def test_a_folder_of_records_serves_as_well_as_their_frame(tmp_path):
    """Statistics read of it what they need; drops and patch sums stay on the disk."""
    records = idsds.evaluate(
        ["mini_resnet8"], ["IxG", "Gradient", "Random"], "digits", images=6, grid=[2, 4], device="cpu", progress=False, output=tmp_path,
        checkpoints={"mini_resnet8": fresh(tmp_path)},
    )  # fmt: skip
    for function in (rank, paired_differences, ranking_with_ties, kendalls_w):
        found, expected = function(tmp_path), function(records)
        pd.testing.assert_frame_equal(found, expected, check_dtype=False, check_categorical=False)
    assert all("drops" not in part for part in frames(tmp_path))
    with pytest.raises(FileNotFoundError, match="no records"):
        rank(tmp_path / "elsewhere")


def test_a_folder_is_read_a_few_models_at_a_time_with_the_same_result(tmp_path, monkeypatch):
    """Two nets, two seeds, two grids: every statistic of the folder is that of the frame, however few columns are in memory at a time."""
    torch.manual_seed(0)
    nets = {name: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)) for name in "ba"}
    data = TensorDataset(torch.randn(5, 3, 8, 8), torch.arange(5))
    records = idsds.evaluate(nets, ["IxG", "Gradient", "Random"], data, grid=[2, 4], seed=[0, 1], output=tmp_path, progress=False)
    wanted = [("IxG", "Random")]
    for step in (1, 7):
        monkeypatch.setattr("idsds.statistics.scores.COLUMNS_AT_ONCE", step)
        for function in (
            rank,
            nested_bootstrap,
            ranking_with_ties,
            krippendorffs_alpha,
            lambda given: paired_differences(given, by="model"),
            lambda given: paired_differences(given, wanted),
            lambda given: images_needed(given, *wanted[0]),
            lambda given: rank_each(given, "grid"),
            lambda given: rank_agreement(given, "grid"),
        ):
            pd.testing.assert_frame_equal(function(tmp_path), function(records), check_dtype=False, check_categorical=False)
    parts = list(frames(tmp_path, "grid"))
    assert [set(part["model"]) for part in parts] == [{"b"}, {"a"}], "never more than one model in memory"
    with pytest.raises(UnknownNameError, match=r"unknown method 'IG'"):
        paired_differences(tmp_path, [("IxG", "IG")])


def fresh(folder):
    file = folder / "fresh.safetensors"
    save_checkpoint(idsds.create_model("mini_resnet8"), file)
    return file


def test_an_image_without_a_group_is_one_of_its_own():
    grouped, alone = crops(8, 3), crops(8, 3).assign(model="n", image_id=lambda rows: "other " + rows["image_id"]).drop(columns="group")
    both, parts = rank(pd.concat([grouped, alone])), [rank(grouped), rank(alone)]
    assert list(both["interval"]) == ["95 % BCa bootstrap over groups of images"] * 2 + ["95 % BCa bootstrap over images"] * 2
    pd.testing.assert_frame_equal(both.drop(columns="interval"), pd.concat(parts, ignore_index=True).drop(columns="interval"))


def test_what_cannot_be_ranked_together_is_refused():
    records = crops(4, 1)
    mixed = np.where(records["method"] == "a", "lower is better", "higher is better")
    with pytest.raises(ValueError, match="records of 'm' mix scores"):
        rank(records.assign(direction=mixed))
    by_protocol = pd.concat([records.assign(protocol=name, direction=f"{name} is better") for name in ("higher", "lower")])
    assert rank(by_protocol)["method"].tolist() == ["a", "b", "b", "a"], "each protocol by its own direction"
    with pytest.raises(ValueError, match=r"'ceiling' must hold true or false, not \['False'\]"):
        rank(records.assign(ceiling="False"))
    with pytest.raises(ValueError, match=r"'image_id' of the records is empty in 1 of 8 rows"):
        rank(records.assign(image_id=[None, *records["image_id"][1:]]))


@pytest.mark.parametrize("function", [rank_each, rank_agreement])
def test_several_scores_under_one_condition_are_not_averaged(function):
    records = pd.concat([crops(4, 1).assign(protocol=protocol, grid=grid) for protocol, grid in (("x", 2), ("x", 4), ("y", 2))])
    function(records[records["grid"] == 2], "protocol", resamples=10)
    with pytest.raises(ValueError, match="under one condition 'm' has several scores of 'a' on '000/0'"):
        function(records, "protocol", resamples=10)
