"""Robustness to augmentations: small runs of the engine, and tables made by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from idsds import create_method, create_model, evaluate, published
from idsds.common.settings import SettingsError
from idsds.plots.augmentation_robustness import unchanging
from idsds.studies.augmentation_robustness import (
    CLAIMS,
    LEAST,
    MOST,
    AugmentationRobustness,
    agreements,
    judged,
    means_of,
    sentences,
    similarities,
)
from tests.plots.test_augmentation_robustness import augmented

STUDY = published.xai_correlation_ssim()


FEW = {"dataset": "digits", "models": ["mini_resnet8"], "images": 4}


def test_augmentation_counts_every_image(tmp_path):
    settings = AugmentationRobustness(**FEW, methods=["Random", "Edges"], threshold=1.0, output=str(tmp_path))
    result = settings.run(progress=False)
    table, claims = result.table, result.tables["claims"]
    assert (table["count"] + table["nan"] == 4).all()
    assert claims.empty, "none of the methods that the study speaks of"
    # No probability moves by more than 1, but more colour does nothing to grey digits, and any map would be robust to that.
    same = table["augmentation"] == "chroma_boost"
    assert (table.loc[same, ["changed", "stayed", "counted"]] == 0).all(axis=None)
    assert table.loc[same, "mean"].isna().all()
    assert (table.loc[~same, "counted"] == 1).all()
    assert (table.loc[~same, ["changed", "stayed"]] == 4).all(axis=None)
    assert (table["images"] == 4).all()
    assert unchanging(table) == ["chroma_boost"]
    assert set(table.loc[table["measure"] == "ssim", "data_range"]) == {"of each pair of maps"}
    assert list(dict.fromkeys(table["method"])) == ["Random", "Edges"]
    still = table[(table["method"] == "Random") & (table["augmentation"] == "all filters")]
    np.testing.assert_allclose(still["mean"], 1, atol=1e-5)
    records = evaluate(**FEW, methods=["Edges"], protocol="augmentation_robustness", threshold=1.0, progress=False)
    wanted = np.stack(records["spearman_each"])[:, 2].mean()
    row = table.query("method == 'Edges' and augmentation == '+15 degrees' and measure == 'spearman'")
    np.testing.assert_allclose(row["mean"], wanted)
    whole = table.query("method == 'Edges' and augmentation == 'all rotations' and measure == 'ssim'")
    np.testing.assert_allclose(whole["mean"], records["ssim"].mean())
    kept, _, filters = result.findings.sentences
    assert result.findings.scope.startswith("One net per model")
    assert kept.endswith("changes them: 4 of 4 (rotations, mini_resnet8), 4 of 4 (filters, mini_resnet8).")
    assert "Random on mini_resnet8 by Spearman (1.00)" in filters


def test_ssim_takes_one_data_range_for_the_experiment(tmp_path):
    given = {**FEW, "methods": ["Edges", "IxG"], "threshold": 1.0, "groups": ["rotations"], "output": str(tmp_path)}
    settings = AugmentationRobustness(**given, data_range=2)
    assert [run["data_range"] for run in settings.runs().values()] == [2]
    table = settings.run(progress=False).table
    records = evaluate(**FEW, methods=["Edges"], protocol="augmentation_robustness", threshold=1.0, data_range=2.0, progress=False)
    whole = table.query("method == 'Edges' and augmentation == 'all rotations' and measure == 'ssim'")
    np.testing.assert_allclose(whole["mean"], records["ssim"].mean())
    assert whole["data_range"].tolist() == ["2 for all maps"]
    as_studied = AugmentationRobustness(**given, data_range={"Edges": 2.0}, channels="each")
    assert [run["similarity"] for run in as_studied.runs().values()] == ["ssim_by_channel"]
    assert as_studied.ssim_range == "one number by method"
    for wrong in ({"data_range": 0.0}, {"data_range": {"Edges": -1.0}}, {"channels": "three"}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            AugmentationRobustness(**given, **wrong)


def test_images_that_were_not_changed_are_told_from_those_whose_probability_moved():
    """Three images, two rotations: by hand, from the shifts of the target's probability (NaN: not changed)."""
    shifts = [[0.01, np.nan, 0.2, 0.2], [0.01, 0.2, 0.2, 0.2], [0.2, 0.3, 0.2, 0.2]]
    each = [[0.5, np.nan, np.nan, np.nan], [0.7, np.nan, np.nan, np.nan], [np.nan] * 4]
    facts = {"image_id": ["a", "b", "c"], "model": "m", "method": "IG", "family": "gradient", "seed": 0, "shifts": shifts}
    values = {name: [0.5, 0.7, np.nan] for name in ("ssim", "spearman", "top_intersection")}
    records = pd.DataFrame({**facts, **values, **{f"{name}_each": each for name in values}})
    found = similarities(records.assign(label="rotations"), 0.05, "of each pair of maps")
    table = means_of(found).query("measure == 'ssim'").set_index("augmentation")
    assert table.loc["-30 degrees", ["images", "changed", "stayed", "count", "nan"]].tolist() == [3, 3, 2, 2, 1]
    assert table.loc["-15 degrees", ["images", "changed", "stayed", "count", "nan"]].tolist() == [3, 2, 0, 0, 3]
    assert table.loc["all rotations", ["images", "changed", "stayed", "count"]].tolist() == [3, 3, 2, 2]
    assert table.loc["-30 degrees", "mean"] == pytest.approx(0.6)


def similarity_of(scores):
    """SSIM over all rotations by method, one number per image; the other measures alike."""
    images = [f"i{number:02}" for number in range(len(next(iter(scores.values()))))]
    facts = {"model": "m", "seed": 0, "group": "rotations", "augmentation": "all rotations", "changed": True, "stayed": True}
    return pd.concat(
        pd.DataFrame({**facts, "image_id": images, "method": name, "measure": measure_name, "score": values, "data_range": ""}).assign(
            family="control" if name in CONTROLS_OF_ROBUSTNESS else "gradient"
        )
        for name, values in scores.items()
        for measure_name in ("ssim", "spearman", "top_intersection")
    )


CONTROLS_OF_ROBUSTNESS = ("Random", "Edges")


def test_both_halves_of_the_studys_claim_are_tested_on_the_same_images():
    rng = np.random.default_rng(0)
    shared, names = rng.normal(size=30), list(dict.fromkeys(STUDY["method"]))
    means = dict(zip(names, np.linspace(0.4, 0.6, len(names)), strict=True)) | {CLAIMS[MOST]: 0.8, CLAIMS[LEAST]: 0.1, "Random": 1.0}
    scores = {name: mean + shared + 0.02 * rng.normal(size=30) for name, mean in means.items()}
    found = judged(similarity_of(scores), names).set_index("claim")
    assert found["verdict"].tolist() == ["supported", "supported"], "controls take no part, and what the images share cancels"
    rival = found.loc[MOST, "rival"]
    assert rival == max(set(names) - {CLAIMS[MOST]}, key=lambda name: scores[name].mean())
    paired = scores[CLAIMS[MOST]] - scores[rival]
    wanted = stats.bootstrap((paired,), np.mean, confidence_level=0.99, n_resamples=9_999, rng=1).confidence_interval  # five rivals
    np.testing.assert_allclose(found.loc[MOST, ["difference", "low", "high"]].astype(float), [paired.mean(), *wanted], atol=0.002)
    scores[CLAIMS[MOST]] = scores[rival] + 0.001 * rng.normal(size=30)
    scores[CLAIMS[LEAST]] = scores[CLAIMS[LEAST]] + 0.9
    changed = judged(similarity_of(scores), names).set_index("claim")
    assert changed["verdict"].to_dict() == {MOST: "contradicted", LEAST: "contradicted"}
    scores[CLAIMS[LEAST]] = scores[rival] + 0.2 * rng.normal(size=30) - 0.01
    assert judged(similarity_of(scores), names).set_index("claim").loc[MOST, "verdict"] == "not supported"
    assert judged(similarity_of({"IG": shared}), names).empty


def test_rank_correlations_of_methods_have_an_interval_and_a_p():
    rng = np.random.default_rng(0)
    theirs = STUDY[STUDY["augmentation"] == "all rotations"].set_index("method")["ssim"]
    scores = {name: value + 0.01 * rng.normal(size=30) for name, value in theirs.items()} | {"Random": rng.normal(size=30)}
    found = agreements(similarity_of(scores), STUDY).set_index("other")
    assert found.loc["published", ["rho", "methods", "count"]].tolist() == [1, len(theirs), 30]
    assert found.loc["published", "p"] == pytest.approx(2 / 720)  # of 6! pairings the best and the worst are as extreme
    assert found.loc["spearman", "rho"] == pytest.approx(1)  # the same numbers
    other = similarity_of(scores)
    other["score"] += 2 * rng.normal(size=len(other))  # each measure has noise of its own
    row = agreements(other, STUDY).set_index("other").loc["spearman"]
    assert row["low"] < row["rho"] <= row["high"], "images are drawn one by one, and not by the augmentations' group"
    noisy = {name: rng.normal(size=30) for name in theirs.index}
    row = agreements(similarity_of(noisy), STUDY).set_index("other").loc["published"]
    ours = [noisy[name].mean() for name in theirs.index]
    assert row["rho"] == pytest.approx(stats.spearmanr(ours, theirs).statistic)
    assert row["low"] < row["rho"] < row["high"]
    assert row["p"] > 0.1


def test_deconvolution_on_a_net_of_relus_shows_the_class_and_not_the_image(checkpoint):
    """What the sentence on filters says: its rule does not ask which ReLUs were on, so that another image of the class has the same map."""
    model = create_model("mini_resnet8", checkpoint=checkpoint)
    images, targets = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 3, 3, 5])
    maps = {name: create_method(name, model)(images, targets).flatten(1) for name in ("Deconvolution", "Guided Backprop", "Gradient")}
    same = {name: np.corrcoef(found[:2])[0, 1] for name, found in maps.items()}
    assert torch.equal(maps["Deconvolution"][0], maps["Deconvolution"][1])
    assert torch.equal(maps["Deconvolution"][0], maps["Deconvolution"][2])
    assert not torch.equal(maps["Deconvolution"][0], maps["Deconvolution"][3])
    assert max(same["Guided Backprop"], same["Gradient"]) < 0.99


def test_what_is_as_robust_as_noise_is_named_with_it():
    table = augmented()
    at = (table["group"] == "filters") & (table["measure"] == "spearman") & (table["augmentation"] == "all filters")
    for method, value in [("Saliency", 0.9995), ("IG", 0.998), ("Guided Grad-CAM", 0.5), ("Random", 1.0)]:
        table.loc[at & (table["method"] == method), "mean"] = value
    kept, _, filters = sentences(table)
    assert kept == (
        "Images that keep the target's probability under an augmentation that changes them: 8 of 10 (rotations, a), 8 of 10 (filters, a)."
    )
    assert "Random, Saliency on a by Spearman (1.00)" in filters
    table.loc[at & (table["method"] == "Saliency"), "mean"] = 1.0
    table.loc[at & (table["method"] == "Random"), "mean"] = 0.9995
    assert "Random, Saliency on a by Spearman (1.00)" in sentences(table)[2]


def test_crops_of_a_photo_are_drawn_together():
    rng = np.random.default_rng(4)
    once = similarity_of({name: rng.uniform(size=20) for name in ("Guided Grad-CAM", "Deconvolution", "Gradient", "IG")})
    crops = [once.assign(belongs=once["image_id"], image_id=[f"{image}/{crop}" for image in once["image_id"]]) for crop in range(5)]
    five = pd.concat(crops, ignore_index=True)
    study = pd.DataFrame({"augmentation": "all rotations", "method": ["Guided Grad-CAM", "Gradient", "IG"], "ssim": [0.3, 0.2, 0.1]})
    for found in (means_of, lambda table: judged(table, ["Guided Grad-CAM", "Deconvolution", "Gradient"]), lambda t: agreements(t, study)):
        single, copied = found(once), found(five)
        assert "groups of images" in copied["interval"].iloc[0] or "other" in copied
        np.testing.assert_allclose(single[["low", "high"]], copied[["low", "high"]], atol=0.02)
