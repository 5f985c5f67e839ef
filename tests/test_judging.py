"""The drivers behind the notebooks on settings, robustness and the metrics: small runs of the engine, and tables made by hand."""

import numpy as np
import pandas as pd
import pytest

from idsds import evaluate, published
from idsds.augmentation import AugmentationSettings
from idsds.augmentation import findings as augmentation_findings
from idsds.augmentation import measure as measure_augmentation
from idsds.metric_sanity import CONTROLS, MetricSanitySettings, against_controls, plain_verdicts, summary
from idsds.protocols import list_protocols
from idsds.protocols.ground_truth import NOT_APPLICABLE, VERDICTS
from idsds.resolving import make_plan
from idsds.sensitivity import SensitivitySettings, _runs, cost, findings, measure, sweeps_on
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
    assert (table["counted"] == 1).all()  # no probability moves by more than 1
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
    settings = MetricSanitySettings(**FEW, methods=["IG", "Random"], output=str(tmp_path))
    assert settings.judged == list_protocols()
    assert [run["protocol"] for run in settings.runs()] == [name for name in list_protocols() if name not in NOT_APPLICABLE]


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
