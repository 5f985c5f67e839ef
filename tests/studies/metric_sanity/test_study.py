"""Protocols on trained nets with controls, and the verdicts in words: small runs, and tables made by hand."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from idsds.common.settings import SettingsError
from idsds.protocols import PROTOCOLS
from idsds.studies.base import Plan
from idsds.studies.metric_sanity import MetricSanity, study
from idsds.studies.metric_sanity.known_truth import VERDICTS, readings
from idsds.studies.metric_sanity.retraining import RETRAINING
from idsds.studies.metric_sanity.study import CONTROLS, against_controls, retrained_controls, sentences
from idsds.studies.roar import Roar
from tests.plots.test_metric_sanity import judged

FEW = {"dataset": "digits", "models": ["mini_resnet8"], "images": 4}


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
    assert (found["pairs_random"], found["pairs_edges"], found["pairs_center"]) == (4, 2, 0)
    assert found["above_random"] == 0.5  # IG on both nets, IxG on none
    assert found["above_edges"] == 0
    assert np.isnan(found["above_center"])
    assert found["control_shift"] == pytest.approx(0)
    shifted = records.assign(score=records["score"] + (records["model"] == "b") * 3)
    moved = against_controls(shifted, True)
    assert moved["control_shift"] == pytest.approx(3 / 1.5)  # IG is 1 and 2 above Random
    assert np.isnan(moved["control_shift_low"]), "that five images agree is no certainty"
    lower = against_controls(records.assign(score=-records["score"]), higher_is_better=False)
    assert lower == pytest.approx(found, nan_ok=True)


def test_a_method_without_a_score_is_no_pair_and_is_counted():
    noise = np.array([0.0, 0.1, -0.1, 0.05, -0.05])
    records = records_of({model: {"IG": 1 + noise, "Grad-CAM": noise * np.nan, "Random": noise} for model in "ab"})
    found = against_controls(records, True)
    assert (found["pairs_random"], found["above_random"], found["undefined_on_nets"]) == (2, 1, 0.5)
    assert found["control_shift"] == pytest.approx(0)


def test_a_control_that_has_one_score_by_construction_says_nothing_of_a_shift():
    noise = np.array([0.0, 0.1, -0.1, 0.05, -0.05])
    records = records_of({model: {"IG": noise, "Random": np.ones(5)} for model in "ab"})
    assert np.isnan(against_controls(records, True)["control_shift"])


def test_retrained_controls_by_hand():
    """Accuracies after removal: IG loses 0.2 and 0.3 more than Random for all seeds, IxG as much as Random."""
    rows = [
        ("net", method, family, "remove", share, seed, accuracy - (fall + 0.001 * seed * len(method)) * (share > 0))
        for method, family, fall in [
            ("IG", "gradient", 0.5),
            ("IxG", "gradient", 0.25),
            ("Random", "control", 0.25),
            ("Edges", "control", 0.7),
        ]
        for seed, accuracy in enumerate([0.9, 0.91, 0.92])
        for share in (0.0, 0.5, 0.9)
    ]
    records = pd.DataFrame(rows, columns=["model", "method", "family", "kind", "share", "seed", "accuracy"])
    records = records.assign(
        count=10, undefined=0, constant=0, explained=10, agreement=0.5, explained_accuracy=0.9, chance=0.1, top5=1.0, explained_top5=1.0
    )
    found = retrained_controls(records, "roar")
    assert (found["pairs_random"], found["pairs_edges"], found["pairs_center"]) == (2, 2, 0)
    assert (found["above_random"], found["above_edges"]) == (0.5, 0)
    assert np.isnan(found["above_center"])
    assert np.isnan(found["confounded_on_nets"]), "no masks, no test of leakage"
    one = retrained_controls(records[records["seed"] == 0], "roar")
    assert np.isnan(one["above_random"]), "one training seed gives no verdict, and not the verdict that nothing is above"
    # Masks of Random's that tell the class hold up its accuracy: what is lower than it may owe that to leakage alone.
    masks = records[records["share"] > 0].assign(
        kind="mask", accuracy=lambda rows: np.where(rows["method"] == "Random", 1.0, 0.1), count=200
    )
    leaking = retrained_controls(pd.concat([records, masks]), "roar")
    assert (leaking["above_random"], leaking["confounded_on_nets"]) == (0, 0.5)
    assert leaking["above_edges"] == 0


def test_a_model_without_a_method_to_compare_is_left_out():
    noise = np.array([0.0, 0.1, -0.1, 0.05, -0.05])
    records = records_of({"a": {"IG": 1 + noise, "Random": noise}, "b": {"Random": noise}})
    found = against_controls(records, True)
    assert found["pairs_random"] == 1
    assert np.isnan(found["control_shift"])


def test_it_wants_a_control_and_something_to_compare(tmp_path):
    for methods in (["IG"], ["Random", "Edges"]):
        with pytest.raises(SettingsError, match="must hold 'Random' and at least one that is not a control"):
            MetricSanity(**FEW, methods=methods, output=str(tmp_path))
    given = {**FEW, "methods": ["IG", "Random"], "output": str(tmp_path)}
    with pytest.raises(SettingsError, match=r"unknown protocol 'idsd'. Did you mean 'idsds'"):
        MetricSanity(**given, protocols=["idsd"])
    with pytest.raises(SettingsError, match=r"unknown key 'share'. Did you mean 'shares'"):
        MetricSanity(**given, retraining={"share": [0.5]})
    settings = MetricSanity(**given)
    assert settings.judged == readings()
    assert settings.roar is None
    image = [reading.label for reading in readings() if reading.applies and reading.entry.level == "image"]
    assert list(settings.runs()) == image
    assert settings.runs()["infidelity, squares, scaled"]["normalise"] is True
    assert "group" not in settings.runs()["augmentation_robustness"], "what known maps need is no setting of trained nets"


@pytest.mark.parametrize("profile", ["mnist5k", "fashion_mnist"])
def test_what_is_retrained_is_what_the_notebook_roar_retrains(profile, tmp_path):
    """So that the nets of the one are in the cache of the other."""
    params = Path(__file__).resolve().parents[3] / "params" / profile
    given = yaml.safe_load((params / "metric_sanity.yaml").read_text())
    settings = MetricSanity(**{**given, "output": str(tmp_path)})
    theirs = Roar(**{**yaml.safe_load((params / "roar.yaml").read_text()), "output": f"{tmp_path}/roar"})
    assert settings.roar == theirs


def test_a_small_run_judges_known_maps_and_nets(tmp_path, monkeypatch):
    few = replace(RETRAINING, repetitions=2, train=120, test=80)
    monkeypatch.setattr(study, "judge", partial(study.judge, retraining=few))
    retraining = {"methods": ["IxG", "Random"], "shares": [0.0, 0.5], "train_images": 40, "recipe": {"epochs": 1}, "seeds": [0, 1]}
    protocols = ["idsds", "kar"]
    given = {**FEW, "images": 12, "methods": ["IxG", "Random"], "protocols": protocols, "retraining": retraining}
    settings = MetricSanity(**given, known_images=12, output=str(tmp_path))
    plan = settings.plan().table
    assert set(plan["label"]) == {"idsds", "roar and kar"}
    assert plan.loc[plan["label"] == "idsds", "forward"].sum() > 0
    again = pd.concat([plan, plan[plan["label"] == "idsds"].assign(label="again")])
    trained = Plan(again, ("label",)).table["epochs"].notna()
    assert trained.sum() == plan["epochs"].notna().sum(), "the nets of all runs are trained once"
    table = settings.run(progress=False).table.set_index("label")
    assert list(table.index) == protocols
    assert table["pairs_random"].tolist()[0] == 1
    assert np.isfinite(table.loc["idsds", "above_random"])
    assert np.isnan(table.loc["idsds", "control_shift"]), "one net has nothing to be compared with"
    assert table.loc["idsds", "verdict"] == VERDICTS[0]
    shutil.copytree(tmp_path / "known", tmp_path / "beside" / "known")
    beside = MetricSanity(**given, known_images=12, processes=2, output=str(tmp_path / "beside"))
    assert not beside.stages(), "its nets are in the cache"
    again = beside.run(progress=False).table.set_index("label")
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), table.drop(columns="seconds"))
    as_ever = study.evaluate
    monkeypatch.setattr(study, "evaluate", lambda **run: study.in_memory(as_ever(**run)).assign(distilled=True))
    notes = settings.run(progress=False).table.set_index("label")["note"]
    assert notes["idsds"].startswith(table.loc["idsds", "note"])
    assert notes["idsds"].endswith("distilled, fine-tuned without labels")
    assert notes["kar"] == table.loc["kar", "note"]


def test_protocols_are_named_by_their_verdict():
    assert sentences(judged()) == ["Ranks methods on one model, comparable between models: idsds.", "Neither: roar."]


def test_nets_that_several_rows_need_are_trained_once(tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_CACHE", str(tmp_path / "cache"))
    given = {**FEW, "models": ["mini_resnet8", "mini_vgg11"], "methods": ["IxG", "Random"], "parts": True, "output": str(tmp_path / "run")}
    stages = MetricSanity(**given, protocols=["idsds", "single_deletion", "f_fidelity", "road"]).stages()
    assert len(stages) == len({stage.key for stage in stages}) == 9
    for pair in (("digits", "mini_resnet8"), ("digits", "mini_vgg11"), ("sprites", "mini_resnet8")):
        of_pair = [stage for stage in stages if (stage.dataset, stage.model) == pair]
        assert len({(stage.start or stage).key for stage in of_pair}) == 1
        assert {stage.deletion.share for stage in of_pair if stage.deletion} == {None, PROTOCOLS["f_fidelity"].masked_share}
