"""The sensitivity to hyperparameters: small runs of the engine, and records made by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from idsds import evaluate
from idsds.common.settings import SettingsError
from idsds.studies.base import resolve
from idsds.studies.hyperparameter_sensitivity import HyperparameterSensitivity, judged, movements, sentences

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
            HyperparameterSensitivity(**given, sweeps=sweeps)
    with pytest.raises(ValueError, match="'Gradient' has no hyperparameter to vary"):
        HyperparameterSensitivity(**{**given, "methods": ["Gradient"]}).plan()


def test_sweeps_are_those_asked_for_else_the_packages(tmp_path):
    settings = HyperparameterSensitivity(
        **FEW, methods=["IG", "Grad-CAM", "CheferLRP"], sweeps={"IG": {"steps": [2, 50]}}, output=str(tmp_path)
    )
    assert settings.sweeps_on("mini_resnet8") == {"IG": {"steps": [2, 50]}, "Grad-CAM": {"layer": ["layer1", "layer2", "layer3"]}}


def test_sensitivity_runs_each_setting_and_marks_the_methods_own(tmp_path):
    settings = HyperparameterSensitivity(**FEW, methods=["IG", "Grad-CAM"], sweeps={"IG": {"steps": [2, 50]}}, output=str(tmp_path))
    result = settings.run(progress=False)
    scores, spreads = result.tables["settings"], result.table
    assert list(scores["value"]) == [2, 50, "layer1", "layer2", "layer3"]
    assert list(scores["default"]) == [False, True, False, False, True]
    assert list(spreads["hyperparameter"]) == ["steps", "layer"]
    plain = evaluate(**FEW, methods=["IG", "Grad-CAM"], progress=False).groupby("method")["score"].mean()
    own = scores[scores["default"]].set_index("method")["mean"]
    np.testing.assert_allclose(own[["IG", "Grad-CAM"]], plain[["IG", "Grad-CAM"]])
    np.testing.assert_allclose(spreads["idsds_range"], [np.ptp(scores["mean"][:2]), np.ptp(scores["mean"][2:])])
    lines = result.findings.sentences
    most = spreads.loc[spreads["idsds_range"].idxmax()]
    assert f"IDSDS changes most with the {most.hyperparameter} of {most.method} on mini_resnet8, by {most.idsds_range:.2f} [" in lines[0]
    assert result.findings.verdicts["comparisons"].tolist() == [2, 2]
    np.testing.assert_allclose(spreads["gap"], np.ptp(own[["IG", "Grad-CAM"]]))
    np.testing.assert_allclose(spreads["share"], spreads["idsds_range"] / spreads["gap"])
    for name in ("", "ssim_", "deviation_"):
        mean = spreads["spearman" if not name else name.strip("_")]
        assert (spreads[f"{name}low"] <= mean).all()
        assert (mean <= spreads[f"{name}high"]).all()


def test_small_numbers_stay_numbers(tmp_path):
    """YAML reads 1e-05 as a string."""
    settings = HyperparameterSensitivity(
        **FEW, methods=["IG-SG"], sweeps={"IG-SG": {"sigma": ["1e-05", 0.1], "samples": [2, 4]}}, output=str(tmp_path)
    )
    assert settings.sweeps == {"IG-SG": {"sigma": [1e-5, 0.1], "samples": [2, 4]}}
    assert isinstance(settings.sweeps["IG-SG"]["samples"][0], int)
    assert settings.runs()["mini_resnet8, IG-SG, sigma"]["sweep"] == {"sigma": [1e-5, 0.1]}


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
    rows = judged(rows)
    assert rows["noise_verdict"].tolist() == ["supported", "supported", "not supported"]
    assert rows["gap_verdict"].tolist() == ["supported", "not supported", "not supported"], "the whole interval above half, or across it"
    assert judged(rows.assign(share_high=0.4, share_low=0.3))["gap_verdict"].tolist() == ["contradicted"] * 3
    moves, above, maps = sentences(rows)
    assert moves.startswith(
        "IDSDS changes most with the baseline of IG on m, by 0.30 [0.01, 0.50] (0.10 to 0.40), and least with the layer of "
        "Grad-CAM on m, by 0.010"
    )
    assert above.startswith("2 of 3 hyperparameters change IDSDS by more than sampling noise alone")
    for by, what in [("Spearman", "baseline of IG"), ("SSIM", "layer of Grad-CAM"), ("deviation per pixel", "probability of RISE")]:
        assert f"with the {what} on m by {by} (" in maps


def test_maps_and_idsds_of_a_setting_come_from_one_net(tmp_path):
    settings = HyperparameterSensitivity(**FEW, methods=["IG"], sweeps={"IG": {"steps": [2, 50]}}, baseline="blur", output=str(tmp_path))
    calls = list(settings.runs().values())
    assert [call["protocol"] for call in calls] == ["idsds", "hyperparameter_sensitivity"]
    stages = [resolve(**call).jobs[0].source for call in calls]
    assert stages[0].key == stages[1].key
    assert stages[1].deletion.baseline == "blur"


def test_what_one_of_two_nets_shows_is_noise():
    """Settings differ on one net and a little, the other way round, on another: what would a third show?"""
    rng = np.random.default_rng(6)
    scores = 0.05 * rng.normal(size=(40, 2))
    once = settings_of(scores + np.array([0, 0.5]))
    alone = movements(once, [["s0", "s1"]])
    pd.testing.assert_frame_equal(movements(once.assign(seed=7), [["s0", "s1"]]), alone)
    (row,) = alone.itertuples()
    assert row.p < 0.01
    other = settings_of(scores - np.array([0, 0.1]))
    (both,) = movements(pd.concat([once.assign(seed=0), other.assign(seed=1)]), [["s0", "s1"]]).itertuples()
    assert both.idsds_range == pytest.approx(row.idsds_range - 0.3)
    assert both.p > 0.3
    assert (both.range_low, both.range_high) == (0, pytest.approx(row.idsds_range, abs=0.05))
    alike = pd.concat([once.assign(seed=seed) for seed in (0, 1, 2)])
    (row,) = movements(alike, [["s0", "s1"]]).itertuples()
    assert row.p < 0.01


def test_crops_of_a_photo_are_drawn_together():
    scores = np.random.default_rng(3).normal(size=(30, 3))
    once = settings_of(scores).assign(group=lambda rows: rows["image_id"])
    five = pd.concat([once.assign(image_id=once["image_id"] + f"/{crop}") for crop in range(5)], ignore_index=True)
    single, copied = (movements(records, [["s0", "s1", "s2"]], ["s0", "s1"]) for records in (once, five))
    pd.testing.assert_frame_equal(single, copied)
