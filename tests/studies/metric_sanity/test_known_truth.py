"""Every protocol on known ground truth: what the table says of it, and the verdict that follows."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from idsds.protocols import PROTOCOLS, list_protocols
from idsds.protocols.roar import pixel_ranks
from idsds.studies.metric_sanity import known_truth as judging
from idsds.studies.metric_sanity.known_truth import READINGS, VERDICTS, Reading, judge, readings, verdict
from idsds.studies.metric_sanity.retraining import RETRAINING

FEW = replace(RETRAINING, repetitions=3, train=120, test=80)


@pytest.fixture(scope="module")
def table():
    return judge(images=12, retraining=FEW).set_index("label")


def test_every_protocol_is_judged(table):
    assert set(table["protocol"]) == set(list_protocols())
    assert (table["forward"] + table["maps"] > 0).all()
    parts = {name for name in list_protocols() if PROTOCOLS[name].parts}
    assert set(table.index[~table["applies"]]) == {"hyperparameter_sensitivity", *parts}
    assert not table["applies"].iloc[-1], "what does not apply comes last"
    measured = ["exact_first", "random_last", "ordering", "model_shift", "scale_shift", "undefined"]
    judged = table[table["applies"]]
    assert judged[measured].notna().all(axis=None)
    assert table.loc[~table["applies"], measured].isna().all(axis=None)
    assert (table.loc[~table["applies"], "note"] != "").all()
    assert (judged["undefined"] == 0).all()
    assert set(table["verdict"]) <= set(VERDICTS)
    assert (table["verdict"] == "does not apply").equals(~table["applies"])
    for name in ("exact_first", "random_last", "ordering", "separation", "model_shift", "scale_shift", "shapley_first"):
        there = judged.dropna(subset=[name, f"{name}_low"])
        assert (there[f"{name}_low"] <= there[name] + 1e-9).all()
        assert (there[name] <= there[f"{name}_high"] + 1e-9).all()
    assert set(judged["units"]) == {12, 3}


@pytest.mark.parametrize(
    "label",
    ["idsds", "single_deletion", "incremental_deletion", "incremental_deletion_descending", "infidelity, squares", "infidelity, noise"],
)
def test_protocols_of_faithfulness_order_the_maps(table, label):
    """They measure what is known here: the ordering is clear, and the mean tells a map with little noise from the exact one."""
    row = table.loc[label]
    assert row["ordering"] > 0.5
    assert row["resolution"] <= 0.5
    assert row["beaten"] == 0


def test_single_deletion_is_exact_where_the_truth_is_its_own(table):
    """The exact importances are the drops themselves: nothing can score higher than 1."""
    assert table.loc["single_deletion", "exact_first"] == 1
    assert table.loc["single_deletion", "ordering"] > 0.9
    assert (table.loc["single_deletion", ["forward", "maps"]] == [17, 1]).all()


def test_the_scale_of_a_map_moves_raw_infidelity_alone(table):
    """Three times the map is another forecast; ranks, and a map that is scaled to its best, stay as they are."""
    moved = table.loc[table["scale_shift"] > 1e-6].index
    assert set(moved) == {"infidelity, squares", "infidelity, noise"}
    assert (table.loc[moved, "verdict"] == "neither").all()


def test_what_is_blind_to_the_sign_of_a_map(table):
    """Minus the exact map is the worst there is; scaled to its best factor, which may be negative, it is the exact map again."""
    assert table.loc["single_deletion", "sign_shift"] > 1.5, "as far again as noise, on the other side"
    blind = table.index[table["sign_shift"] < 1e-6]
    assert {"infidelity, squares, scaled", "infidelity, noise, scaled", "sanity_check", "smooth_mprt"} <= set(blind)
    assert not {name for name in blind if table.loc[name, "asks"] == "right"} - {"infidelity, squares, scaled", "infidelity, noise, scaled"}


def test_stability_is_not_correctness(table):
    """Noise of one key hardly changes with the image: these two put it first, whatever the exact map says."""
    for protocol in ("max_sensitivity", "augmentation_robustness"):
        row = table.loc[protocol]
        assert row["exact_first"] == 0
        assert row["ordering"] < 0
    for protocol in ("max_sensitivity", "augmentation_robustness", "sanity_check"):
        assert table.loc[protocol, "verdict"] == "neither: a test to pass, not a ranking"
        assert "drawn once per image" in table.loc[protocol, "note"]
    assert table.loc["sanity_check", "settings"] == "depths=1"


def test_notes_say_what_the_order_owes_to_the_truth(table):
    for protocol in ("idsds", "single_deletion"):
        assert "the truth is the drop of a patch" in table.loc[protocol, "note"]
    assert "squares" in table.loc["infidelity, squares", "note"]
    assert table.loc["incremental_deletion", "note"] == ""


def test_notes_of_quantus_say_what_a_test_asks():
    pytest.importorskip("quantus", reason="the extra quantus is not installed")
    changes = {
        "MaxSensitivity": "does not change with the image",
        "MPRT": "changes with the model",
        "RandomLogit": "changes with the class",
    }
    for name, words in changes.items():
        (reading,) = readings([f"quantus/{name}"])
        assert reading.test
        assert words in reading.note


def test_a_given_map_has_no_rotations_that_count():
    """Stripes that are turned are evidence for nothing: no rotation keeps the probability, and no image has a score."""
    (row,) = judge([Reading("augmentation_robustness", test=True)], images=4).to_dict("records")
    assert row["undefined"] == 1
    assert row["verdict"] == "neither: a test to pass, not a ranking"


def test_verdicts_follow_from_the_row():
    row = {
        "protocol": "idsds",
        "applies": True,
        "test": False,
        "ordering_low": 0.9,
        "resolution": 0.25,
        "beaten": 0,
        "scale_shift_high": 0.0,
    }
    row |= {"model_shift_high": 0.1}
    best, ranks, neither = "ranks methods on one model, comparable between models", "ranks methods on one model", "neither"
    nets = {**row, "control_shift": 0.2, "control_shift_high": 0.4}
    assert verdict(row) == verdict(nets) == verdict({**row, "control_shift": np.nan, "control_shift_high": np.nan}) == best
    for worse in ({"model_shift_high": 0.5}, {"model_shift_high": np.nan}, {"control_shift_high": 0.5}, {"control_shift_high": np.nan}):
        assert verdict({**nets, **worse}) == ranks
    for worse in ({"model_shift_high": 0.5}, {"model_shift_high": np.nan}):
        assert verdict({**row, **worse}) == ranks
    worse = (
        {"ordering_low": 0.5},
        {"ordering_low": np.nan},
        {"resolution": 1.0},
        {"resolution": np.inf},
        {"resolution": np.nan},
        {"beaten": 1},
    )
    for change in (*worse, {"scale_shift_high": 0.5}, {"scale_shift_high": np.nan}):
        assert verdict({**row, **change}) == neither
    assert verdict({**row, "applies": False}) == "does not apply"
    assert verdict({**row, "test": True}) == "neither: a test to pass, not a ranking"  # however well it orders


def test_rows_are_those_of_the_protocols_asked_for():
    assert [reading.label for reading in readings(["kar", "idsds"])] == ["kar", "idsds"]
    assert {reading.protocol for reading in readings()} == set(list_protocols())
    assert all(reading.protocol in PROTOCOLS for reading in READINGS)
    with pytest.raises(ValueError, match=r"unknown protocol 'deletions'"):
        judge(["deletions"])


def test_images_and_models_are_resampled_together(monkeypatch):
    """The interval of the shift is that of a hand-made jackknife over images."""
    rng = np.random.default_rng(0)
    made = [torch.from_numpy(rng.normal([3, 2.5, 2, 1, 0.5, 0], size=(9, 6)) + shift) for shift in (0.0, 0.3, 0.1)]
    waiting = iter(made)
    monkeypatch.setattr(judging, "known_scores", lambda entry, model, maps, *_: next(waiting) if len(maps) == 6 else made[0][:, :2])
    (row,) = judge([Reading("idsds", truth="gradient")], images=9).to_dict("records")

    def shift(kept):
        means = np.stack([scores.numpy()[kept].mean(axis=0) for scores in made])
        return np.ptp(means, axis=0).mean() / np.abs(means[:, 0] - means[:, -1]).mean()

    everyone = np.arange(9)
    left_out = np.array([shift(np.delete(everyone, image)) for image in everyone])
    half = 2.306004135 * np.sqrt(8 / 9 * ((left_out - left_out.mean()) ** 2).sum())  # t of 8 degrees of freedom
    assert row["model_shift"] == pytest.approx(shift(everyone))
    assert (row["model_shift_low"], row["model_shift_high"]) == pytest.approx((row["model_shift"] - half, row["model_shift"] + half))


def test_retrainings_see_the_same_images_for_a_map_of_another_scale(table):
    maps = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pixel_ranks(maps, ["a", "b"]), pixel_ranks(3 * maps, ["a", "b"]))
    assert (table.loc[["roar", "kar"], "scale_shift"] == 0).all()


def test_the_table_has_one_row_per_reading():
    table = judge(["infidelity"], images=4)
    assert list(table["label"]) == [f"infidelity, {name}" for name in ("squares", "squares, scaled", "noise", "noise, scaled")]
    assert isinstance(table, pd.DataFrame)
    assert table.loc[table["label"].str.contains("noise"), "shapley_first"].isna().all()


@pytest.mark.parametrize("images", [0, -3, 2.5])
def test_a_number_of_images_that_is_none_is_refused(images):
    with pytest.raises(ValueError, match=rf"images must be a whole number of at least 1, not {images}"):
        judge(["idsds"], images=images)
