import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import idsds
from idsds.common.files import packaged_file
from idsds.datasets.photos import photo
from idsds.models.packaged import SQUEEZENET
from idsds.statistics import paired_differences, rank
from idsds.studies import rank_methods as findings
from idsds.studies.finetune import Finetune
from idsds.studies.rank_methods import RankMethods


def records(scores: dict[tuple[str, str], float], n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    families = {"BagNet": "intrinsic", "Random": "control"}
    frames = [
        pd.DataFrame(
            {
                "model": model,
                "method": method,
                "family": families.get(method, "gradient"),
                "seed": 0,
                "image_id": [str(i) for i in range(n)],
                "score": mean + 0.1 * rng.standard_normal(n),
            }
        )
        for (model, method), mean in scores.items()
    ]
    return pd.concat(frames, ignore_index=True)


SCORES = {
    ("mini_resnet8", "IG"): 0.7,
    ("mini_resnet8", "IG abs"): 0.4,
    ("mini_resnet8", "IG-SG"): 0.9,
    ("mini_resnet8", "Random"): 0.0,
    ("mini_resnet20", "IG"): 0.5,
    ("mini_vgg11", "IG"): 0.7,
    ("mini_bagnet", "BagNet"): 0.95,
    ("mini_bagnet", "IG"): 0.3,
}


def verdicts(found: pd.DataFrame) -> dict:
    return {(row.finding, row.higher, row.lower): row.verdict for row in found.itertuples()}


def test_each_finding_is_compared_where_the_records_allow():
    found = verdicts(findings.published_findings(records(SCORES)))
    assert found == {
        ("intrinsic explanations score best", "mini_bagnet BagNet", "mini_resnet8 IG-SG"): "supported",
        ("intrinsic explanations score best", "mini_bagnet BagNet", "mini_resnet20 IG"): "supported",
        ("intrinsic explanations score best", "mini_bagnet BagNet", "mini_vgg11 IG"): "supported",
        ("intrinsic explanations score best", "mini_bagnet BagNet", "mini_bagnet IG"): "supported",
        ("absolute values impair", "mini_resnet8 IG", "mini_resnet8 IG abs"): "supported",
        ("SmoothGrad impairs", "mini_resnet8 IG", "mini_resnet8 IG-SG"): "contradicted",
        ("deeper is lower", "mini_resnet8 IG", "mini_resnet20 IG"): "supported",
        ("VGG is above ResNet", "mini_vgg11 IG", "mini_resnet8 IG"): "not supported",
        ("VGG is above ResNet", "mini_vgg11 IG", "mini_resnet20 IG"): "supported",
    }


def test_the_posters_own_numbers_contradict_its_slogan_about_absolute_values_in_part():
    own = findings.poster_findings()
    own = own[own["finding"] == "absolute values impair"]
    method = own["higher"].str.split(" ", n=1).str[1]
    counts = own.groupby(method)["verdict"].value_counts().unstack(fill_value=0)
    assert counts.loc["IG", "supported"] == counts.loc["IG-U", "supported"] == 9
    assert counts.loc["IxG-SG", "contradicted"] == 9
    assert counts.loc["IG-SG", ["supported", "contradicted"]].tolist() == [0, 5]
    assert counts.loc["IxG", ["supported", "contradicted"]].tolist() == [3, 5]
    assert own.loc[~method.isin(["IG-U"]), "inferred"].all(), "the labels of these absolute maps are not printed"
    assert (own["high"] - own["difference"]).to_numpy() == pytest.approx(0.006), "two readings"


def test_the_posters_numbers_stand_beside_every_finding():
    table = findings.beside_poster(findings.published_findings(records(SCORES))).set_index("finding")
    said = table["in the poster's own numbers"]
    assert said["absolute values impair"] == "21 of 45, contradicted 19"
    assert said["deeper is lower"] == "99 of 108, contradicted 0"
    assert table.loc["absolute values impair", "comparisons"] == 1


def test_the_interval_is_that_of_the_paired_difference():
    data = records({("m", "IG"): 0.5, ("m", "IG abs"): 0.45})
    row = findings.published_findings(data).iloc[0]
    wide = data.pivot(index="image_id", columns="method", values="score")
    assert row.difference == pytest.approx((wide["IG"] - wide["IG abs"]).mean())
    same = paired_differences(data, pairs=[("IG", "IG abs")]).iloc[0]
    assert (row.low, row.high) == pytest.approx((same.low, same.high), abs=0.01)


def test_a_claim_over_several_training_seeds_is_about_other_seeds_too():
    """Two nets of three support it, each for certain; the mean of all three does as well, but not for nets trained alike."""
    means = [{("mini_resnet8", "IG"): 0.7, ("mini_resnet8", "IG abs"): 0.7 - gain} for gain in (0.3, 0.2, -0.1)]
    several = pd.concat([records(each).assign(seed=seed) for seed, each in enumerate(means)], ignore_index=True)
    (claim,) = findings.published_findings(several).itertuples()
    assert claim.interval == "95 % percentile bootstrap over training seeds and images"
    assert (claim.count, claim.verdict) == (3 * len(records(means[0])) // 2, "not supported")
    (alone,) = findings.published_findings(several[several["seed"] == 0]).itertuples()
    assert alone.verdict == "supported"


def test_undefined_scores_are_counted():
    data = records({("m", "IG"): 0.5, ("m", "IG abs"): 0.4})
    data.loc[:4, "score"] = np.nan
    row = findings.published_findings(data).iloc[0]
    assert (row["count"], row["nan"]) == (55, 5)


def test_records_without_any_comparison_give_an_empty_table():
    found = findings.published_findings(records({("m", "IG"): 0.5, ("m", "Random"): 0.0}))
    assert found.empty
    assert set(found.columns) == {*findings.COLUMNS}


def test_an_intrinsic_explanation_without_a_rival_is_not_compared():
    assert findings.published_findings(records({("mini_bagnet", "BagNet"): 0.5})).empty
    only = findings.published_findings(records({("mini_bagnet", "BagNet"): 0.5, ("mini_resnet8", "IG"): 0.4}))
    assert only["lower"].tolist() == ["mini_resnet8 IG"]


def test_the_sentence_names_each_models_best():
    table = rank(records({("m", "IG"): 0.5, ("m", "IG abs"): 0.3, ("other", "IG"): 0.1}))
    (text,) = findings.best(table)
    assert text.startswith(f"Highest mean IDSDS of each model: IG on m ({table['mean'].max():.2f} [")
    assert "IG on other (" in text


def test_every_method_is_compared_with_the_best_control():
    data = records({("m", "IG"): 0.5, ("m", "IG abs"): -0.4, ("m", "Random"): 0.0, ("m", "Center"): 0.2, ("other", "IG"): 0.1})
    data.loc[data.method == "Center", "family"] = "control"
    found = findings.beside_controls(data)
    assert found[["model", "method", "control", "verdict"]].values.tolist() == [
        ["m", "IG", "Center", "supported"],
        ["m", "IG abs", "Center", "contradicted"],
    ]
    wide = data[data.model == "m"].pivot(index="image_id", columns="method", values="score")
    assert found.difference[0] == pytest.approx((wide["IG"] - wide["Center"]).mean())
    assert findings.above(found) == ["Of 2 pairs of model and method, 1 score above every control and 1 below the best one."]
    assert findings.beside_controls(records({("m", "IG"): 0.5})).empty
    assert findings.above(found.head(0)) == []


def test_the_drops_are_counted_once_per_image():
    data = pd.DataFrame({"model": "m", "seed": 0, "image_id": ["a", "a", "b"], "method": ["x", "y", "x"]})
    data["drops"] = [np.array([2.0, 0.05, -1.0, 0.2])] * 2 + [np.zeros(4)]
    drops = findings.drops_of(data)
    assert len(drops) == 2 * 4
    assert drops["share"][:4].tolist() == pytest.approx([1.0, 0.025, -0.5, 0.1])
    assert drops["share"][4:].isna().all(), "an image that no patch matters for has no shares"
    row = findings.summary_of(drops).iloc[0]
    assert (row.median_largest, row.share_above_noise, row.images, row.patches) == (1.0, 2 / 8, 2, 8)


def test_scores_above_noise_are_scipys_correlation_over_those_patches():
    drops = [
        [4.0, 0.1, 3.0, -2.0, 1.0, 0.0],
        [1.0, 0.0, 0.9, 0.0, 0.0, 0.0],
        [3.0, 2.0, 1.0, 0.0, 0.0, 0.0],
        [3.0, 2.0, 1.0, 0.0, 0.0, 0.0],
    ]
    sums = [[2.0, 9.0, 5.0, 9.0, 1.0, 9.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 1.0, 1.0, 2.0, 3.0, 4.0], [3.0, 1.0, 1.0, 9.0, 9.0, 9.0]]
    rows = pd.DataFrame({"model": "net", "score": 0.3, "drops": map(np.array, drops), "patch_sums": map(np.array, sums)})
    found = findings.above_noise(rows)["score"].to_numpy()
    assert found[0] == pytest.approx(spearmanr([4, 3, -2, 1], [2, 5, 9, 1]).statistic), "drops below 5 % of the largest are left out"
    assert np.isnan(found[1:3]).all(), "two patches, and equal sums"
    assert found[3] == pytest.approx(spearmanr([3, 2, 1], [3, 1, 1]).statistic), "ties share their ranks"
    assert findings.above_noise(rows.assign(score=np.nan))["score"].isna().all(), "an undefined score stays undefined"


def test_the_share_of_patches_above_noise_stands_beside_the_ranking():
    drops = [np.array([4.0, 0.1, 3.0, -2.0]), np.array([1.0, 0.0, 0.0, 0.0])]
    rows = pd.DataFrame({"model": ["a", "b"], "seed": 0, "image_id": "0", "drops": drops})
    table = findings.with_drops(pd.DataFrame({"model": ["b", "a", "a"], "method": ["IG", "IG", "IxG"]}), rows)
    assert table["share_above_noise"].tolist() == [0.25, 0.5, 0.5]
    assert "b 25%, a 50%" in findings.drops_said(table)
    finer = pd.DataFrame({"model": "b", "seed": 0, "image_id": "0", "drops": [np.ones(9), np.nan], "grid": [3, 2]})
    both = pd.concat([rows.assign(grid=2), finer.iloc[:1]])
    table = findings.with_drops(pd.DataFrame({"model": "b", "grid": [2, 3, 4]}), both, ["grid"])
    assert table["share_above_noise"].fillna(-1).tolist() == [0.25, 1.0, -1]
    assert findings.with_drops(table, finer.iloc[1:])["share_above_noise"].isna().all(), "a protocol without drops"


def test_verdicts_on_the_patches_that_count_stand_beside_those_on_all():
    claims = findings.published_findings(records(SCORES))
    table = findings.beside_poster(claims, claims).set_index("finding")
    assert table.loc["VGG is above ResNet", "only patches that count"] == "1 of 2, contradicted 0"


METHODS = ["Gradient", "Saliency", "Grad-CAM", "Random", "Center"]


@pytest.fixture(autouse=True)
def packages():
    try:
        photo(0), packaged_file(*SQUEEZENET)
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))


def test_a_ranking_of_a_net_that_was_tuned_without_labels_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("idsds.datasets.photos.POOL", 1)
    changes = {"models": ["squeezenet1_1"], "checkpoints": {"squeezenet1_1": "pretrained"}, "epochs": 1, "batch_size": 20}
    shared = {"dataset": "photos20", "methods": METHODS, "images": 6}
    tuned = Finetune(**shared, **changes, ranked_images=6, output=str(tmp_path / "finetune"))
    result = tuned.run(progress=False)
    ranking = result.tables["ranking"].iloc[0]
    assert ranking["methods"] == 3
    assert ranking["images"] == 6
    assert ranking["largest_drop_before"] > 0
    assert ranking["low"] <= ranking["rho"] <= ranking["high"]
    assert (result.table["count"] == 6).all()

    records = idsds.load_records(tmp_path / "finetune" / "after_0")
    assert records["distilled"].all()
    assert {"group", "distilled"} <= set(records)
    units = result.table["groups"] if "groups" in result.table else result.table["count"]
    assert (units == records["group"].nunique()).all(), "crops of a photo count once in an interval"

    plain = RankMethods(models=["squeezenet1_1"], protocol="single_deletion", output=str(tmp_path / "plain"), **shared)
    result = plain.run(progress=False)
    assert "distilled" not in result.records
    assert "score" not in result.table
    means = result.table.set_index("method")["mean"]
    assert means["Grad-CAM"] > means["Gradient"]
    assert (result.table["interval"].str.contains("group")).all()
    figures = result.save(result.plot())
    assert all(file.is_file() for file in figures)
