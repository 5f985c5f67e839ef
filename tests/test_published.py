"""Published numbers: complete, in range, under names that the registries know, and with the identities that theory demands."""

import tomllib
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import spearmanr

from idsds import list_datasets, list_methods, list_models, published
from idsds.common.normalisation import UNIT
from idsds.methods.base import split_name
from idsds.protocols.robustness import augmentations

ROOT = Path(__file__).resolve().parents[1]


def test_the_poster_is_complete_and_in_range():
    scores = published.idsds_scores()
    assert len(scores) == 108 + 9 * 6
    assert not scores.duplicated(["model", "method"]).any()
    assert scores["score"].between(-0.01, 0.8).all()
    assert scores["model"].nunique() == 11
    assert set(published.accuracies()["model"]) < set(scores["model"])
    assert len(published.accuracies()) == 10
    assert published.accuracies()["accuracy"].between(0.68, 0.83).all()


def test_every_name_is_ours():
    scores, study, similar = published.idsds_scores(), published.xai_correlation_models(), published.xai_correlation_ssim()
    assert set(scores["model"]) | set(study["model"]) <= set(list_models())
    for method in {*scores["method"], *study["method"], *similar["method"]}:
        assert split_name(method)[0] in list_methods()
    assert set(study["dataset"]) <= set(list_datasets())
    ours = {name for group in ("rotations", "filters") for name in augmentations(group, UNIT)}
    assert set(similar["augmentation"]) == ours | {"all rotations", "all filters", "all"}


def test_inferred_labels_are_marked():
    scores = published.idsds_scores()
    inferred = scores[scores["inferred"]]
    squares = {"IG abs", "IxG abs", "IxG-SG abs", "IG-SG abs", "IG-SG-SQ", "IG-SG-VG"}
    assert set(inferred["method"]) == {"RISE-U", "Layer-CAM", "Grad-CAM", *squares}
    assert len(inferred) == 9 + 8 + 1 + 9 * 6
    assert not scores.loc[scores["method"] == "B-cos", "inferred"].item()


def score(model: str, method: str) -> float:
    scores = published.idsds_scores().set_index(["model", "method"])["score"]
    return scores[model, method]


def test_without_bias_terms_integrated_gradients_is_input_times_gradient():
    # A bias-free ReLU net is positively homogeneous: its gradient is the same along the path from the zero baseline.
    assert score("x_resnet50", "IG") == score("x_resnet50", "IxG") == 0.241
    assert score("x_resnet50", "IG-SG") == score("x_resnet50", "IxG-SG") == 0.121
    assert score("x_resnet50", "IG abs") == score("x_resnet50", "IxG abs") == 0.16
    assert score("x_resnet50", "IG-SG abs") == pytest.approx(score("x_resnet50", "IxG-SG abs"), abs=0.0011)
    assert score("resnet50", "IG") != score("resnet50", "IxG")


def test_the_study_has_75_models_and_the_correlations_that_it_never_printed():
    table = published.xai_correlation_models()
    study = table[table["method"] == "Guided Backprop"]
    assert not study["digitised"].any()
    assert len(study) == 75
    assert (study.groupby(["model", "dataset"])["train_fraction"].agg(sorted).map(list) == [[0.2, 0.4, 0.6, 0.8, 1.0]] * 15).all()
    assert study[["weighted_precision", "weighted_f1"]].stack().between(0, 1).all()
    assert (study[["infidelity", "sensitivity"]] > 0).all(axis=None)
    for first, second, wanted in (
        ("weighted_precision", "infidelity", 0.45),
        ("weighted_f1", "infidelity", 0.56),
        ("weighted_precision", "sensitivity", 0.09),
    ):
        assert spearmanr(study[first], study[second]).statistic == pytest.approx(wanted, abs=0.006)


def test_the_charts_of_the_study_are_read_well_enough():
    table = published.xai_correlation_models()
    assert table.groupby("method").size().to_dict() == dict.fromkeys(["Guided Backprop", "Saliency", "Guided Grad-CAM", "GradientSHAP"], 75)
    assert table["digitised"].sum() == 3 * 75
    assert table[["infidelity", "sensitivity"]].isna().any(axis=1).sum() == 2
    assert table["doubtful"].sum() == 2, "one that was read twice and differs, one clipped bar"
    # The method that is printed was read, too: the error of all the others.
    read = pd.read_csv(ROOT / "idsds/published/xai_correlation_75_models_digitised.csv").query("method == 'gbp'")
    printed = pd.read_csv(ROOT / "idsds/published/xai_correlation_gbp_75_models.csv")
    both = read.merge(printed, on=["model", "dataset", "train_fraction"], suffixes=("_read", ""))
    assert (both["infidelity_read"] / both["infidelity"] - 1).abs().max() < 0.002
    assert (both["sensitivity_read"] - both["sensitivity"]).abs().max() < 0.007


def test_an_independent_run_agrees_with_the_poster_and_stands_beside_it():
    repeated = published.idsds_reproduction()
    nets = repeated[~repeated["model"].str.startswith("mean")]
    assert len(nets) == 6
    for row in nets.itertuples():
        assert row.score == pytest.approx(score(row.model, row.method), abs=0.02)
    rows = [(model, method, 0.3) for model in ("resnet50", "vgg16", "vit_base_patch16_224") for method in ("IG", "IxG")]
    both = published.compare(ranked(rows)).set_index("source")
    assert both.loc["DECAF", "model"].tolist() == [
        "resnet50",
        "vgg16",
        "vit_base_patch16_224",
        published.MEAN + "resnet50, vgg16, vit_base_patch16_224",
    ]
    assert both.loc["DECAF", "published"].tolist() == [0.1941, 0.4002, 0.1247, 0.098]
    assert len(both.loc["poster"]) == 6
    assert published.MEAN not in "".join(published.compare(ranked(rows[:-1]))["model"]), "a net lacks the method"


def test_overall_similarities_are_the_means_of_their_rows():
    table = published.xai_correlation_ssim()
    assert len(table) == 6 * 12
    assert table["ssim"].between(0, 1).all()
    single = table[~table["augmentation"].str.startswith("all")]
    assert single.groupby("method")["group"].value_counts().unstack().eq([5, 4]).all(axis=None)
    means = single.groupby(["method", "group"])["ssim"].mean()
    for row in table[table["augmentation"].isin(["all rotations", "all filters"])].itertuples():
        assert row.ssim == pytest.approx(means[row.method, row.group], abs=0.02)
    assert (table["sd_reused"] == (table["augmentation"] == "all")).all()


def ranked(rows) -> pd.DataFrame:
    return pd.DataFrame([(*row, row[2] - 0.01, row[2] + 0.01) for row in rows], columns=["model", "method", "mean", "low", "high"])


def test_compare_keeps_what_matches_and_marks_what_was_inferred():
    table = ranked([("resnet50", "IG", 0.2), ("resnet50", "Layer-CAM", 0.19), ("resnet50", "IG (mine)", 0.3), ("mini_resnet8", "IG", 0.7)])
    found = published.compare(table)
    assert found["method"].tolist() == ["IG", "IG", "Layer-CAM"]
    assert found["published"].tolist() == [0.196, 0.1941, 0.192]
    assert found["difference"].tolist() == pytest.approx([0.004, 0.0059, -0.002])
    assert found["inferred"].tolist() == [False, False, True]
    assert found["source"].tolist() == ["poster", "DECAF", "poster"]
    assert (found["low"] < found["ours"]).all()


@pytest.mark.parametrize("other", [{"dataset": "imagenette"}, {"grid": 8}, {"baseline": "blur"}])
def test_nothing_matches_under_another_setting(other):
    found = published.compare(ranked([("resnet50", "IG", 0.2)]), **other)
    assert found.empty
    assert list(found.columns) == ["model", "method", "ours", "low", "high", "published", "difference", "inferred", "source"]


def test_a_table_without_means_is_refused():
    with pytest.raises(ValueError, match=r"lacks the columns \['mean', 'low', 'high'\]"):
        published.compare(pd.DataFrame({"model": ["a"], "method": ["b"]}))


def test_the_files_are_part_of_the_package():
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert found["idsds.published"] == ["*.csv", "README.md"]
    assert len(list((ROOT / "idsds" / "published").glob("*.csv"))) == 8


def test_the_values_of_funnybirds():
    table = published.funnybirds()
    wide = table.pivot(index=["model", "method"], columns="measure", values="published")
    assert wide.loc[("resnet50", "IxG"), "completeness"] == pytest.approx(((0.7353 + 0.602 + 0.532) / 3 + 0.54372) / 2)
    assert wide.loc[("vit_base_patch16_224", "Rollout"), "mean"] == pytest.approx(((0.856 + 0.804 + 0.820) / 3 + 0.797) / 6 + 0.756 / 3)
    assert set(wide.index.get_level_values("method")) - {"AttnLRP"} <= set(list_methods())
    assert wide["accuracy"].notna().sum() == 1
