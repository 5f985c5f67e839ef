import numpy as np
import pytest
import torch

from idsds.datasets.synthetic import PatchModel
from idsds.protocols import PROTOCOLS, list_protocols
from idsds.protocols.ground_truth import (
    ASKS,
    NOT_APPLICABLE,
    VERDICTS,
    KnownMap,
    judge,
    known_models,
    known_scores,
    model_shift,
    properties,
    verdict,
)
from idsds.protocols.single_deletion import patch_sums
from tests.datasets.test_synthetic import batch_of
from tests.methods.nets import ConvNet


@pytest.fixture
def model():
    return PatchModel(interaction=1.0, saturation=2.0).double()


def test_known_maps(model):
    images, targets, ids = batch_of(4)
    images = images.double()
    exact = patch_sums(KnownMap(model)(images, targets, ids), 4) / 64
    wanted = model.importance(images, targets) / 64
    torch.testing.assert_close(exact, wanted)
    one, two, noise = (patch_sums(KnownMap(model, level)(images, targets, ids), 4) / 64 for level in (1.0, 2.0, torch.inf))
    mean = wanted.mean(dim=1, keepdim=True)
    drawn = noise - mean  # one draw for all levels, of the exact map's spread
    torch.testing.assert_close(one - mean, (wanted - mean + drawn) / 2**0.5)
    torch.testing.assert_close(two - mean, (wanted - mean + 2 * drawn) / 5**0.5)
    assert 0.5 < float(drawn.std() / (wanted - mean).std()) < 2
    again = patch_sums(KnownMap(model, 1.0)(images[2:], targets[2:], ids[2:]), 4) / 64
    torch.testing.assert_close(again, one[2:])
    assert [KnownMap(model, level).name for level in (0, 0.5, torch.inf)] == ["exact", "exact + 0.5 noise", "noise"]


def test_properties_by_hand():
    scores = torch.tensor([[4.0, 3, 2, 1], [4, 3, 2, 1], [4, 5, 2, 3], [4, 3, torch.nan, 1]])
    found = properties(scores, True, (0, 1, 2))
    assert found["exact_first"] == 0.5  # the third has a better one, the fourth an undefined one
    assert found["random_last"] == 0.5
    assert found["ordering"] == pytest.approx((1 + 1 + 0.6) / 3)  # ranks 3 4 1 2 against 4 3 2 1: 1 - 6 * 4 / 60
    # Level 1 loses 1, 1, -1, 1: mean 0.5, standard error 0.5; level 2 loses 2, 2, 2.
    assert found["resolution"] == 2
    losses = np.array([3, 3, 1, 3])
    assert found["separation"] == pytest.approx(losses.mean() / losses.std(ddof=1))
    assert found["undefined"] == 1 / 16
    assert properties(-scores, False, (0, 1, 2)) == pytest.approx(found)
    nothing = properties(torch.ones(4, 4), True, (0, 1, 2))
    assert np.isnan(nothing["resolution"])
    assert nothing["exact_first"] == 0


@pytest.fixture(scope="module")
def table():
    return judge(images=12).set_index("protocol")


def test_every_protocol_is_judged(table):
    assert list(table.index) == list_protocols("image")
    assert (table["forward"] + table["maps"] > 0).all()
    assert list(table.index[~table["applies"]]) == [name for name in list_protocols("image") if name in NOT_APPLICABLE]
    measured = ["exact_first", "random_last", "ordering", "model_shift", "undefined"]
    assert table.loc[table["applies"], measured].notna().all(axis=None)
    assert table.loc[~table["applies"], measured].isna().all(axis=None)
    assert (table.loc[~table["applies"], "note"] != "").all()
    assert (table["undefined"].dropna() == 0).all()
    assert set(table["verdict"]) <= set(VERDICTS)
    assert (table["verdict"] == "does not apply").equals(~table["applies"])


@pytest.mark.parametrize("protocol", ["idsds", "single_deletion", "incremental_deletion", "incremental_deletion_descending", "infidelity"])
def test_protocols_of_faithfulness_order_the_maps(table, protocol):
    """They measure what is known here: the ordering is clear, and the mean tells a map with little noise from the exact one."""
    row = table.loc[protocol]
    assert row["ordering"] > 0.5
    assert row["resolution"] <= 0.5
    assert row["undefined"] == 0


@pytest.mark.parametrize("name", known_models())
def test_the_exact_map_scores_one(name):
    """Its patch sums are the drops, ties included: ten of sixteen patches without evidence have importance 0 and drop 0."""
    model = known_models()[name]
    scores = known_scores(PROTOCOLS["single_deletion"], model, 12, (0.0, 0.25), 0, {})
    assert scores[:, 0].tolist() == pytest.approx([1] * 12, abs=1e-9)
    assert (scores[:, 1] < 1).all()


def test_single_deletion_is_exact_where_the_truth_is_its_own(table):
    """The exact importances are the drops themselves: nothing can score higher than 1."""
    assert table.loc["single_deletion", "exact_first"] == 1
    assert table.loc["single_deletion", "ordering"] > 0.9
    assert (table.loc["single_deletion", ["forward", "maps"]] == [17, 1]).all()


def test_stability_is_not_correctness(table):
    """Noise of one key hardly changes with the image: these two put it first, whatever the exact map says."""
    for protocol in ("max_sensitivity", "augmentation_robustness"):
        row = table.loc[protocol]
        assert row["exact_first"] == 0
        assert row["ordering"] < 0
    for protocol in ASKS:  # the sanity check has noise last, as this noise knows of no net: its order says nothing about maps either
        assert table.loc[protocol, "verdict"] == "a test to pass, not a ranking"
        assert "drawn once per image" in table.loc[protocol, "note"]
    assert table.loc["sanity_check", "settings"] == "depths=1"


def test_notes_say_what_the_order_owes_to_the_truth(table):
    for protocol in ("idsds", "single_deletion"):
        assert "the truth is the drop of a patch" in table.loc[protocol, "note"]
    assert "gaussian" in table.loc["infidelity", "note"]
    assert table.loc["incremental_deletion", "note"] == ""


def test_a_given_map_has_no_rotations_that_count(model):
    """Stripes that are turned are evidence for nothing: no rotation keeps the probability, and no image has a score."""
    (row,) = judge(["augmentation_robustness"], images=4, settings={}).to_dict("records")
    assert row["undefined"] == 1
    assert row["verdict"] == "a test to pass, not a ranking"


def test_models_to_compare_label_every_image_alike():
    images, targets, _ = batch_of(40)
    for model in known_models().values():
        assert (model(images.double()).argmax(dim=1) == targets).all()


def test_model_shift_by_hand():
    scores = torch.tensor([[4.0, 1.0], [2.0, 1.0]])  # means 3 and 1
    assert model_shift([scores, scores]) == 0
    assert model_shift([scores, scores + 1]) == 0.5  # every map moves by 1; exact and noise are 2 apart
    assert model_shift([scores, torch.tensor([[3.0, torch.nan], [3.0, 1.0]])]) == 0
    assert model_shift([scores, 3 * scores]) == pytest.approx(((9 - 3) + (3 - 1)) / 2 / ((2 + 6) / 2))
    assert np.isnan(model_shift([scores]))


def test_verdicts_follow_from_the_row():
    row = {"protocol": "idsds", "applies": True, "ordering": 0.9, "resolution": 0.25, "model_shift": 0.1}
    assert verdict(row) == "ranks methods on one model, comparable between models"
    assert verdict({**row, "model_shift": 0.5}) == verdict({**row, "model_shift": np.nan}) == "ranks methods on one model"
    for worse in ({"ordering": 0.5}, {"ordering": np.nan}, {"resolution": np.inf}, {"resolution": np.nan}):
        assert verdict({**row, **worse}) == "neither"
    assert verdict({**row, "applies": False}) == "does not apply"
    assert verdict({**row, "protocol": "sanity_check"}) == "a test to pass, not a ranking"  # however well it orders


def test_mistakes_are_named(model):
    with pytest.raises(ValueError, match=r"unknown protocol 'deletions'"):
        judge(["deletions"])
    with pytest.raises(ValueError, match=r"protocol 'roar' scores a method over a whole data set.*call idsds\.retraining"):
        judge(["idsds", "roar"])
    with pytest.raises(TypeError, match="known for a PatchModel, not for a ConvNet"):
        KnownMap(ConvNet())
    with pytest.raises(ValueError, match="level must be at least 0, not -1"):
        KnownMap(model, -1)
    with pytest.raises(ValueError, match=r"levels must rise from 0, not \[1, 0\]"):
        properties(torch.ones(2, 3), True, (1, 0))
    with pytest.raises(ValueError, match=r"scores must be \(B, 3\)"):
        properties(torch.ones(2, 4), True, (0, 1))
