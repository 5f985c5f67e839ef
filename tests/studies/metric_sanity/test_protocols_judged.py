"""The drivers behind the notebooks on settings, robustness and the metrics: small runs of the engine, and tables made by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from idsds import create_method, create_model, evaluate, published
from idsds.common.settings import SettingsError
from idsds.evaluation.arguments import make_plan
from idsds.protocols.hyperparameters import parse_values
from idsds.studies.augmentation_robustness import (
    CLAIMS,
    LEAST,
    MOST,
    AugmentationSettings,
    agreements,
    likenesses,
    means_of,
    unchanging,
    verdicts,
)
from idsds.studies.augmentation_robustness import findings as augmentation_findings
from idsds.studies.augmentation_robustness import measure as measure_augmentation
from idsds.studies.hyperparameter_sensitivity import SensitivitySettings, _runs, cost, findings, measure, movements, sweeps_on

STUDY = published.xai_correlation_ssim()
FEW = {"dataset": "digits", "models": ["mini_resnet8"], "images": 4}


def test_wrong_sweeps_end_a_run_before_any_work(tmp_path):
    given = {**FEW, "methods": ["IG"], "output": str(tmp_path)}
    for sweeps, message in [
        ({"IX": {"steps": [1, 2]}}, "unknown method with a sweep 'IX'"),
        ({"IG": {"step": [1, 2]}}, r"unknown option of method 'IG' 'step'. Did you mean 'steps'"),
        ({"IG": {"steps": [5]}}, "at least 2 items"),
        ({"IG": {"steps": [5, 5]}}, "more than once"),
    ]:
        with pytest.raises(SettingsError, match=message):
            SensitivitySettings(**given, sweeps=sweeps)
    with pytest.raises(ValueError, match="'Gradient' has no hyperparameter to vary"):
        cost(SensitivitySettings(**{**given, "methods": ["Gradient"]}))


def test_sweeps_are_those_asked_for_else_the_packages(tmp_path):
    settings = SensitivitySettings(**FEW, methods=["IG", "Grad-CAM", "CheferLRP"], sweeps={"IG": {"steps": [2, 50]}}, output=str(tmp_path))
    assert sweeps_on(settings, "mini_resnet8") == {"IG": {"steps": [2, 50]}, "Grad-CAM": {"layer": ["layer1", "layer2", "layer3"]}}


def test_sensitivity_runs_each_setting_and_marks_the_methods_own(tmp_path):
    settings = SensitivitySettings(**FEW, methods=["IG", "Grad-CAM"], sweeps={"IG": {"steps": [2, 50]}}, output=str(tmp_path))
    scores, spreads = measure(settings)
    assert list(scores["value"]) == [2, 50, "layer1", "layer2", "layer3"]
    assert list(scores["default"]) == [False, True, False, False, True]
    assert list(spreads["hyperparameter"]) == ["steps", "layer"]
    plain = evaluate(**FEW, methods=["IG", "Grad-CAM"], progress=False).groupby("method")["score"].mean()
    own = scores[scores["default"]].set_index("method")["mean"]
    np.testing.assert_allclose(own[["IG", "Grad-CAM"]], plain[["IG", "Grad-CAM"]])
    np.testing.assert_allclose(spreads["idsds_range"], [np.ptp(scores["mean"][:2]), np.ptp(scores["mean"][2:])])
    lines = findings(scores, spreads)
    most = spreads.loc[spreads["idsds_range"].idxmax()]
    assert f"{most.hyperparameter} of {most.method} moves IDSDS most, by {most.idsds_range:.2f} [" in lines[0]
    assert "at their own settings the methods are" in lines[2]
    np.testing.assert_allclose(spreads["gap"], np.ptp(own[["IG", "Grad-CAM"]]))
    np.testing.assert_allclose(spreads["share"], spreads["idsds_range"] / spreads["gap"])
    for name in ("", "ssim_", "deviation_"):
        mean = spreads["spearman" if not name else name.strip("_")]
        assert (spreads[f"{name}low"] <= mean).all()
        assert (mean <= spreads[f"{name}high"]).all()


def test_small_numbers_stay_numbers(tmp_path):
    """YAML reads 1e-05 as a string: both in a params file, and in the list of values that a protocol is given."""
    assert parse_values("1e-05, 0.1, 5, zeros, layer3") == [1e-5, 0.1, 5, "zeros", "layer3"]
    assert isinstance(parse_values("5, 1e-05")[0], int)
    settings = SensitivitySettings(**FEW, methods=["IG-SG"], sweeps={"IG-SG": {"sigma": ["1e-05", 0.1]}}, output=str(tmp_path))
    assert settings.sweeps == {"IG-SG": {"sigma": [1e-5, 0.1]}}


def settings_of(scores):
    """Records of settings ``s0``, ``s1``, ... from scores (images, settings)."""
    images, settings = scores.shape
    names = {"image_id": np.repeat([f"i{n:03}" for n in range(images)], settings), "method": [f"s{n}" for n in range(settings)] * images}
    return pd.DataFrame({**names, "score": scores.ravel()})


def test_the_range_of_two_settings_is_their_paired_difference():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 1)) + 0.1 * rng.normal(size=(40, 2)) + [0, 0.3]  # what an image is worth is shared by the settings
    paired = scores[:, 1] - scores[:, 0]
    (row,) = movements(settings_of(scores), [["s0", "s1"]], resamples=9_999).itertuples()
    half = stats.norm.ppf(0.975) * paired.std(ddof=1) / np.sqrt(40)
    np.testing.assert_allclose((row.idsds_range, row.range_low, row.range_high), paired.mean() + half * np.array([0, -1, 1]), atol=0.004)
    # The mean of |N(0, s)| is s sqrt(2 / pi).
    assert row.noise == pytest.approx(paired.std(ddof=1) / np.sqrt(40) * np.sqrt(2 / np.pi), rel=0.05)
    scores[:, 1] -= 0.28  # too little to be seen
    (row,) = movements(settings_of(scores), [["s0", "s1"]], resamples=9_999).itertuples()
    assert row.p == pytest.approx(stats.ttest_rel(scores[:, 0], scores[:, 1]).pvalue, abs=0.03)
    assert row.range_low == 0


def test_which_settings_are_the_extremes_is_uncertain_too():
    """The range of four means of noise: its errors are those of all pairs, as numpy draws them from the covariance of the images."""
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(30, 4))
    (row,) = movements(settings_of(scores), [["s0", "s1", "s2", "s3"]], resamples=9_999).itertuples()
    errors = np.ptp(rng.multivariate_normal(np.zeros(4), np.cov(scores.T) / 30, size=20_000), axis=1)
    assert row.idsds_range == np.ptp(scores.mean(axis=0))
    assert row.noise == pytest.approx(errors.mean(), rel=0.05)
    assert row.range_high - row.idsds_range == pytest.approx(np.quantile(errors, 0.95), rel=0.05)
    assert row.range_low == 0
    (pair,) = movements(settings_of(scores), [["s0", "s1"]], resamples=9_999).itertuples()
    assert row.range_high - row.idsds_range > pair.range_high - pair.idsds_range  # a choice among more


def test_where_nothing_moves_the_interval_reaches_zero_and_where_something_does_it_holds_it():
    rng, every = np.random.default_rng(2), [["s0", "s1", "s2", "s3"]]
    still = pd.concat([movements(settings_of(rng.normal(size=(30, 4))), every, resamples=300) for _ in range(100)])
    assert (still["p"] <= 0.05).mean() <= 0.1  # 0.05, and two standard errors
    assert (still["range_low"] == 0).mean() >= 0.9
    assert still["noise"].mean() == pytest.approx(still["idsds_range"].mean(), rel=0.1)
    for truth in (0.1, 0.4):  # less than noise, and more
        effects = np.array([truth, 0, 0, 0])
        moved = [rng.normal(size=(30, 1)) + 0.3 * rng.normal(size=(30, 4)) + effects for _ in range(60)]
        table = pd.concat([movements(settings_of(scores), every, resamples=300) for scores in moved])
        assert ((table["range_low"] <= truth) & (table["range_high"] >= truth)).mean() >= 0.9
    assert (table["p"] <= 0.05).all()


def test_a_share_of_the_gap_is_drawn_with_it():
    """Where one noise moves range and gap alike, their ratio is known exactly."""
    base = np.random.default_rng(3).normal(1, 0.2, size=(30, 1))
    records = settings_of(base * [0.0, 0.4, 1.0])
    (row,) = movements(records, [["s0", "s1"]], own=["s0", "s2"]).itertuples()
    assert (row.share, row.share_low, row.share_high) == pytest.approx((0.4, 0.4, 0.4))
    assert row.gap == pytest.approx(base.mean())
    assert row.gap_low < row.gap < row.gap_high
    assert movements(records, [["s0", "s1"]], own=["s0"])["share"].isna().all()


def test_undefined_scores_are_left_out_of_their_setting_alone():
    scores = np.random.default_rng(4).normal(size=(20, 3)) + np.array([0, 1, 0])
    scores[:5, 1], scores[:, 2] = np.nan, np.nan
    (row,) = movements(settings_of(scores), [["s0", "s1", "s2"]]).itertuples()
    assert row.idsds_range == pytest.approx(np.nanmean(scores[:, 1]) - scores[:, 0].mean())
    assert row.range_low < row.idsds_range < row.range_high
    (row,) = movements(settings_of(scores * np.nan), [["s0", "s1"]]).itertuples()
    assert np.isnan([row.idsds_range, row.range_low, row.p]).all()


def test_sentences_name_the_extreme_of_each_measure_and_the_shares_with_their_intervals():
    facts = {"model": "m", "method": ["IG", "RISE", "Grad-CAM"], "hyperparameter": ["baseline", "probability", "layer"]}
    rows = pd.DataFrame({**facts, "idsds_lowest": 0.1, "idsds_highest": 0.4, "idsds_range": [0.3, 0.2, 0.01], "range_low": 0.005})
    rows = rows.assign(range_high=0.5, noise=[0.01, 0.02, 0.01], p_holm=[0.01, 0.04, 0.3], share=[0.75, 0.6, 0.02], share_low=[0.6, 0.3, 0])
    rows = rows.assign(share_high=0.9, gap=0.4, gap_low=0.3, gap_high=0.5, spearman=[0.2, 0.5, 0.6], low=0.1, high=0.7)
    rows = rows.assign(ssim=[0.5, 0.4, 0.1], ssim_low=0.0, ssim_high=0.6, deviation=[0.1, 0.3, 0.2], deviation_low=0.05, deviation_high=0.4)
    own = pd.DataFrame({"model": "m", "method": facts["method"], "default": True, "mean": [0.1, 0.4, 0.5]})
    moves, above, _, share, maps = findings(own, rows)
    assert moves.startswith("m: baseline of IG moves IDSDS most, by 0.30 [0.01, 0.50] (0.10 to 0.40); layer of Grad-CAM least, by 0.010 [")
    assert "2 of 3 hyperparameters move IDSDS by more than image noise alone would" in above
    assert "a range of 0.010 to 0.020" in above
    assert "2 of 3 hyperparameters move one method by more than half of that" in share
    assert "baseline of IG by 75% [60%, 90%], probability of RISE by 60% [30%, 90%]; 1 with the whole interval above half" in share
    for by, what in [("Spearman between settings", "baseline of IG"), ("SSIM", "layer of Grad-CAM"), ("pixel", "probability of RISE")]:
        assert f"{by}, with {what} (" in maps


def test_maps_and_idsds_of_a_setting_come_from_one_net(tmp_path):
    settings = SensitivitySettings(**FEW, methods=["IG"], sweeps={"IG": {"steps": [2, 50]}}, baseline="blur", output=str(tmp_path))
    calls = [call for call, _ in _runs(settings)]
    assert [call.get("protocol", "idsds") for call in calls] == ["idsds", "hyperparameter_sensitivity"]
    given = {"images": 4, "seeds": [0], "checkpoints": {}, "device": "cpu", "precision": "32-true", "batch_size": None, "shard": 1}
    stages = []
    for call in calls:
        where = {
            "dataset": call["dataset"],
            "protocol": call.get("protocol", "idsds"),
            "settings": {"grid": 4, "baseline": call["baseline"]},
        }
        stages.append(make_plan(call["models"], ["IG"], **where, **given).jobs[0].source)
    assert stages[0].key == stages[1].key
    assert stages[1].deletion.baseline == "blur"


def test_augmentation_counts_every_image(tmp_path):
    settings = AugmentationSettings(**FEW, methods=["Random", "Edges"], threshold=1.0, output=str(tmp_path))
    table, claims, agreement = measure_augmentation(settings, STUDY)
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
    lines = augmentation_findings(table, claims, agreement)
    kept = "4 of 4 images keep the target's probability under an augmentation that changes them"
    assert [line for line in lines if kept in line] == [
        f"mini_resnet8, rotations: {kept}.",
        f"mini_resnet8, filters: {kept}; chroma boost changes none and is left out.",
    ]
    assert any(line.startswith("Most robust by SSIM (data range of each pair of maps) ") for line in lines)


def test_ssim_takes_one_data_range_for_the_experiment(tmp_path):
    given = {**FEW, "methods": ["Edges", "IxG"], "threshold": 1.0, "groups": ["rotations"], "output": str(tmp_path)}
    settings = AugmentationSettings(**given, data_range=2)
    assert [run["data_range"] for run in settings.runs()] == [2]
    table, *rest = measure_augmentation(settings, STUDY)
    records = evaluate(**FEW, methods=["Edges"], protocol="augmentation_robustness", threshold=1.0, data_range=2.0, progress=False)
    whole = table.query("method == 'Edges' and augmentation == 'all rotations' and measure == 'ssim'")
    np.testing.assert_allclose(whole["mean"], records["ssim"].mean())
    assert whole["data_range"].tolist() == ["2 for all maps"]
    assert any("SSIM (data range 2 for all maps)" in line for line in augmentation_findings(table, *rest))
    with pytest.raises(SettingsError, match="data_range"):
        AugmentationSettings(**given, data_range=0.0)


def test_images_that_were_not_changed_are_told_from_those_whose_probability_moved(tmp_path, monkeypatch):
    """Three images, two rotations: by hand, from the shifts of the target's probability (NaN: not changed)."""
    shifts = [[0.01, np.nan, 0.2, 0.2], [0.01, 0.2, 0.2, 0.2], [0.2, 0.3, 0.2, 0.2]]
    each = [[0.5, np.nan, np.nan, np.nan], [0.7, np.nan, np.nan, np.nan], [np.nan] * 4]
    facts = {"image_id": ["a", "b", "c"], "model": "m", "method": "IG", "family": "gradient", "seed": 0, "shifts": shifts}
    values = {name: [0.5, 0.7, np.nan] for name in ("ssim", "spearman", "top_intersection")}
    records = pd.DataFrame({**facts, **values, **{f"{name}_each": each for name in values}})
    monkeypatch.setattr("idsds.studies.augmentation_robustness.evaluate", lambda **_: records)
    settings = AugmentationSettings(**FEW, methods=["IG"], groups=["rotations"], output=str(tmp_path))
    table = means_of(likenesses(settings)).query("measure == 'ssim'").set_index("augmentation")
    assert table.loc["-30 degrees", ["images", "changed", "stayed", "count", "nan"]].tolist() == [3, 3, 2, 2, 1]
    assert table.loc["-15 degrees", ["images", "changed", "stayed", "count", "nan"]].tolist() == [3, 2, 0, 0, 3]
    assert table.loc["all rotations", ["images", "changed", "stayed", "count"]].tolist() == [3, 3, 2, 2]
    assert table.loc["-30 degrees", "mean"] == pytest.approx(0.6)


def likeness_of(scores):
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
    found = verdicts(likeness_of(scores), names).set_index("claim")
    assert found["verdict"].tolist() == ["shows", "shows"], "controls take no part, and what the images share cancels"
    rival = found.loc[MOST, "rival"]
    assert rival == max(set(names) - {CLAIMS[MOST]}, key=lambda name: scores[name].mean())
    paired = scores[CLAIMS[MOST]] - scores[rival]
    wanted = stats.bootstrap((paired,), np.mean, confidence_level=0.99, n_resamples=9_999, rng=1).confidence_interval  # five rivals
    np.testing.assert_allclose(found.loc[MOST, ["difference", "low", "high"]].astype(float), [paired.mean(), *wanted], atol=0.002)
    scores[CLAIMS[MOST]] = scores[rival] + 0.001 * rng.normal(size=30)
    scores[CLAIMS[LEAST]] = scores[CLAIMS[LEAST]] + 0.9
    changed = verdicts(likeness_of(scores), names).set_index("claim")
    assert changed["verdict"].to_dict() == {MOST: "reversed", LEAST: "reversed"}
    scores[CLAIMS[LEAST]] = scores[rival] + 0.2 * rng.normal(size=30) - 0.01
    assert verdicts(likeness_of(scores), names).set_index("claim").loc[MOST, "verdict"] == "undecided"
    assert verdicts(likeness_of({"IG": shared}), names).empty


def test_rank_correlations_of_methods_have_an_interval_and_a_p():
    rng = np.random.default_rng(0)
    theirs = STUDY[STUDY["augmentation"] == "all rotations"].set_index("method")["ssim"]
    scores = {name: value + 0.01 * rng.normal(size=30) for name, value in theirs.items()} | {"Random": rng.normal(size=30)}
    found = agreements(likeness_of(scores), STUDY).set_index("other")
    assert found.loc["published", ["rho", "methods", "count"]].tolist() == [1, len(theirs), 30]
    assert found.loc["published", "p"] == pytest.approx(2 / 720)  # of 6! pairings the best and the worst are as extreme
    assert found.loc["spearman", "rho"] == pytest.approx(1)  # the same numbers
    noisy = {name: rng.normal(size=30) for name in theirs.index}
    row = agreements(likeness_of(noisy), STUDY).set_index("other").loc["published"]
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
