"""The drivers behind the notebooks on settings, robustness and the metrics: small runs of the engine, and tables made by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from idsds import evaluate, published
from idsds.augmentation import AugmentationSettings
from idsds.augmentation import findings as augmentation_findings
from idsds.augmentation import measure as measure_augmentation
from idsds.metric_sanity import CONTROLS, MetricSanitySettings, against_controls, plain_verdicts, summary
from idsds.protocols import list_protocols
from idsds.protocols.ground_truth import NOT_APPLICABLE, VERDICTS
from idsds.protocols.hyperparameters import parse_values
from idsds.resolving import make_plan
from idsds.sensitivity import SensitivitySettings, _runs, cost, findings, measure, range_interval, sweeps_on
from idsds.settings import SettingsError

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
    assert f"{most.hyperparameter} moves the IDSDS of {most.method} by {most.idsds_range:.2f}" in lines[0]
    assert "at their own settings the methods are" in lines[1]


def test_small_numbers_stay_numbers(tmp_path):
    """YAML reads 1e-05 as a string: both in a params file, and in the list of values that a protocol is given."""
    assert parse_values("1e-05, 0.1, 5, zeros, layer3") == [1e-5, 0.1, 5, "zeros", "layer3"]
    assert isinstance(parse_values("5, 1e-05")[0], int)
    settings = SensitivitySettings(**FEW, methods=["IG-SG"], sweeps={"IG-SG": {"sigma": ["1e-05", 0.1]}}, output=str(tmp_path))
    assert settings.sweeps == {"IG-SG": {"sigma": [1e-5, 0.1]}}


def test_the_range_of_means_has_a_paired_interval_and_counts_where_that_is_clear():
    rng = np.random.default_rng(0)
    images, noise = [f"i{number}" for number in range(40)], rng.normal(size=40)
    scores = {"a": noise, "b": noise + 0.3 + 0.1 * rng.normal(size=40), "c": noise + 0.1}
    records = pd.concat([pd.DataFrame({"image_id": images, "method": name, "score": values}) for name, values in scores.items()])
    low, high = range_interval(records)
    expected = stats.bootstrap((scores["b"] - scores["a"],), np.mean, method="percentile", n_resamples=9_999, rng=1).confidence_interval
    np.testing.assert_allclose((low, high), expected, atol=0.006)  # a tenth of the width of either
    assert np.isnan(range_interval(records.assign(score=np.nan))).all()
    rows = pd.DataFrame({"model": "m", "method": ["IG", "RISE"], "hyperparameter": "steps", "idsds_lowest": 0.1, "idsds_highest": 0.4})
    rows = rows.assign(idsds_range=0.3, range_low=[0.2, 0.05], range_high=0.5, spearman=0.5, low=0.4, high=0.6)
    own = pd.DataFrame({"model": "m", "method": ["IG", "RISE"], "default": True, "mean": [0.1, 0.4]})
    assert "1 of 2 hyperparameters move one method by more than half of that" in findings(own, rows)[1]


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
    table = measure_augmentation(settings)
    assert (table["count"] + table["nan"] == 4).all()
    # No probability moves by more than 1, but more colour does nothing to grey digits, and any map would be robust to that.
    same = table["augmentation"] == "chroma_boost"
    assert (table.loc[same, "counted"] == 0).all()
    assert table.loc[same, "mean"].isna().all()
    assert (table.loc[~same, "counted"] == 1).all()
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
    lines = augmentation_findings(table, published.xai_correlation_ssim())
    assert any("100% of the images" in line for line in lines)
    assert any("most robust by SSIM (data range of each pair of maps)" in line for line in lines)


def test_ssim_takes_one_data_range_for_the_experiment(tmp_path):
    given = {**FEW, "methods": ["Edges", "IxG"], "threshold": 1.0, "groups": ["rotations"], "output": str(tmp_path)}
    settings = AugmentationSettings(**given, data_range=2)
    assert [run["data_range"] for run in settings.runs()] == [2]
    table = measure_augmentation(settings)
    records = evaluate(**FEW, methods=["Edges"], protocol="augmentation_robustness", threshold=1.0, data_range=2.0, progress=False)
    whole = table.query("method == 'Edges' and augmentation == 'all rotations' and measure == 'ssim'")
    np.testing.assert_allclose(whole["mean"], records["ssim"].mean())
    assert whole["data_range"].tolist() == ["2 for all maps"]
    assert any("SSIM (data range 2 for all maps)" in line for line in augmentation_findings(table, published.xai_correlation_ssim()))
    with pytest.raises(SettingsError, match="data_range"):
        AugmentationSettings(**given, data_range=0.0)


def records_of(values):
    """One model's or several models' scores by method, over five images each."""
    rows = [
        (model, method, "control" if method in CONTROLS else "gradient", f"i{image}", score)
        for model, methods in values.items()
        for method, scores in methods.items()
        for image, score in enumerate(scores)
    ]
    return pd.DataFrame(rows, columns=["model", "method", "family", "image_id", "score"])


def test_controls_by_hand():
    noise = np.array([0.0, 0.1, -0.1, 0.05, -0.05])
    good, bad = 1 + noise, noise[::-1]
    records = records_of(
        {"a": {"IG": good, "IxG": bad, "Random": noise, "Edges": 3 + noise}, "b": {"IG": 1 + good, "IxG": bad, "Random": noise}}
    )
    found = against_controls(records, higher_is_better=True)
    assert found["above_random"] == 0.5  # IG on both nets, IxG on none
    assert found["above_edges"] == 0
    assert np.isnan(found["above_center"])
    assert found["control_shift"] == pytest.approx(0)
    shifted = records.assign(score=records["score"] + (records["model"] == "b") * 3)
    assert against_controls(shifted, True)["control_shift"] == pytest.approx(3 / 1.5)  # IG is 1 and 2 above Random
    lower = against_controls(records.assign(score=-records["score"]), higher_is_better=False)
    assert lower == pytest.approx(found, nan_ok=True)


def test_metric_sanity_wants_a_control_and_something_to_compare(tmp_path):
    for methods in (["IG"], ["Random", "Edges"]):
        with pytest.raises(SettingsError, match="must hold 'Random' and at least one that is no control"):
            MetricSanitySettings(**FEW, methods=methods, output=str(tmp_path))
    with pytest.raises(SettingsError, match=r"unknown protocol 'idsd'. Did you mean 'idsds'"):
        MetricSanitySettings(**FEW, methods=["IG", "Random"], protocols=["idsd"], output=str(tmp_path))
    with pytest.raises(SettingsError, match=r"protocol 'roar' scores a method over a whole data set.*call idsds\.retraining\.roar"):
        MetricSanitySettings(**FEW, methods=["IG", "Random"], protocols=["roar"], output=str(tmp_path))
    settings = MetricSanitySettings(**FEW, methods=["IG", "Random"], output=str(tmp_path))
    assert settings.judged == list_protocols("image")
    assert [run["protocol"] for run in settings.runs()] == [name for name in list_protocols("image") if name not in NOT_APPLICABLE]


def test_verdicts_in_words():
    row = {"protocol": "p", "applies": True, "ordering": 0.9, "resolution": 0.25, "model_shift": 0.1, "above_random": 1.0, "note": ""}
    rows = [
        {**row, "verdict": VERDICTS[0]},
        {**row, "protocol": "q", "resolution": np.nan, "verdict": VERDICTS[2], "note": "asks for stability"},
        {**row, "protocol": "r", "applies": False, "verdict": VERDICTS[3], "note": "no map"},
    ]
    table = pd.DataFrame(rows)
    first, second, third = plain_verdicts(table)
    assert first.startswith(f"p: {VERDICTS[0]} (ordering +0.90, tells the exact map from it with 0.25 noise; another model moves")
    assert "100% of the methods beat Random" in first
    assert "does not tell the exact map" in second
    assert second.endswith("; it asks for stability).")
    assert third == "r: does not apply (no map)."
    assert summary(table) == f"{VERDICTS[0]}: p; neither: q; does not apply: r."
