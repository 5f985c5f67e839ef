"""Sanity checks from settings to the table, with a net that learns permuted labels in a second."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from idsds.datasets.splits import permuted
from idsds.methods import OwnMethod, create_method
from idsds.models import MODELS, register_model
from idsds.protocols import Batch
from idsds.protocols.sanity import compare_models, sanity_check
from idsds.randomisation import SanitySettings, plan_table, sanity_checks, sanity_findings, similarity_table
from idsds.settings import SettingsError
from idsds.stages import plan_training
from tests.methods.nets import ConvNet, images_of, seeded


class Small(nn.Module):
    """Many parameters, few layers: it learns any labels of a few images."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 16, 5, stride=3), nn.BatchNorm2d(16), nn.Linear(16 * 100, num_classes)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().flatten(1))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_HOME", str(tmp_path))
    register_model("small_test", family="test", num_classes=10, input_size=32, training={"epochs": 1})(Small)
    yield tmp_path
    MODELS.remove("small_test")


def settings(**changes):
    given = {
        "dataset": "digits",
        "models": ["small_test"],
        "methods": ["IxG", "Edges", "Random"],
        "images": 12,
        "depths": 2,
        "device": "cpu",
    }
    given |= {"label_fraction": 0.03, "label_recipe": {"epochs": 25, "lr": 0.01}, "output": "runs/x/sanity_checks"}
    return SanitySettings(**{**given, **changes})


def test_permuted_labels_keep_their_numbers_and_are_keyed():
    stage = plan_training("small_test", "digits", in_domain=False, fraction=0.1, permuted_labels=True, device="cpu")
    true = plan_training("small_test", "digits", in_domain=False, fraction=0.1, device="cpu").split("train")
    train = stage.split("train")
    assert train.image_ids == true.image_ids
    assert sorted(train.targets) == sorted(true.targets)
    same = np.mean(np.array(train.targets) == np.array(true.targets))
    assert same < 0.3  # chance is 0.1, its standard error over 140 images 0.025
    assert stage.split("val").targets == train.targets  # the epoch is chosen by what has been learned by heart
    assert permuted(true, 0).targets == train.targets
    assert permuted(true, 1).targets != train.targets
    assert true[3][1] == true.targets[3]  # untouched
    assert train[3][1] == train.targets[3]


def test_addresses_of_stages_with_true_labels_are_what_they_were():
    """The field enters the address only where it is set: checkpoints that were there before it keep their names."""
    stage = plan_training("mini_resnet8", "mnist5k", in_domain=False, device="cpu")
    content = {name: getattr(stage, name) for name in stage.__dataclass_fields__}
    for name in ("start", "weights", "options", "fraction", "permuted_labels"):
        content.pop(name)
    from idsds.stages import LOOP
    from idsds.store import digest, versions

    assert stage.key == digest({**content, "start": None, "loop": LOOP, "torch": versions()["torch"]})
    assert plan_training("mini_resnet8", "mnist5k", in_domain=False, device="cpu", permuted_labels=True).key != stage.key


def test_every_check_in_one_table(home):
    records = sanity_checks(settings(), progress=False)
    checks = records.groupby("check")["depth"].unique()
    assert {name: sorted(depths) for name, depths in checks.items()} == {"cascading": [0.5, 1], "independent": [0.5, 1], "labels": [1]}
    assert len(records) == 12 * 3 * (2 + 2 + 1) * 3
    learned = records.loc[records["check"] == "labels", "train_accuracy"].unique()
    assert learned > 0.95
    table = similarity_table(records)
    controls = table[table["method"].isin(["Edges", "Random"])]
    np.testing.assert_allclose(controls["mean"], 1, atol=1e-6)  # they know nothing of the model, and fail every check
    last = table[(table["method"] == "IxG") & (table["depth"] == 1) & (table["similarity"] == "spearman")]
    assert (last.loc[last["check"] != "independent", "mean"] < 0.9).all()
    row = table.iloc[0]
    values = records[(records[["method", "check", "depth", "similarity"]] == row[["method", "check", "depth", "similarity"]]).all(axis=1)][
        "value"
    ]
    interval = stats.ttest_1samp(values, 0).confidence_interval()
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((values.mean(), interval.low, interval.high))
    pd.testing.assert_frame_equal(pd.read_csv(home / "runs/x/sanity_checks/sanity.csv"), table, check_dtype=False)
    sentences = sanity_findings(table)
    assert [sentence.split(" (")[0] for sentence in sentences] == [
        "small_test, the top 50% of the layers randomised",
        "small_test, all layers randomised",
        f"small_test, permuted labels, {learned[0]:.0%} of them learned",
    ]
    # Gradient is not among the methods: there is nothing to compare with.
    assert not any("more alike than" in sentence for sentence in sentences)
    # What was trained and computed is there the second time.
    plan = plan_table(settings())
    assert not plan["work"].str.contains("train").any()
    pd.testing.assert_frame_equal(sanity_checks(settings(), progress=False), records)


def test_labels_that_were_not_learned_are_told_and_the_check_can_be_left_out():
    with pytest.warns(UserWarning, match=r"has learned \d+% of its permuted labels, the paper asks for more than 95%"):
        records = sanity_checks(settings(label_recipe={"epochs": 1, "lr": 1e-6}, modes=["cascading"]), progress=False)
    assert records["train_accuracy"].max() < 0.5
    assert plan_table(settings())["work"].str.contains("permuted").sum() == 1  # another recipe: not cached
    without = sanity_checks(settings(label_fraction=0.0, modes=["independent"]), progress=False)
    assert set(without["check"]) == {"independent"}


def test_undefined_values_are_counted():
    records = pd.DataFrame({"image_id": list("abc"), "value": [0.5, np.nan, 0.7], "depth": 1.0, "seed": 0, "train_accuracy": np.nan})
    records = records.assign(model="m", method="IG", family="gradient", check="cascading", similarity="ssim")
    (row,) = similarity_table(records).itertuples()
    assert (row.mean, row.count, row.nan) == (pytest.approx(0.6), 2, 1)
    (row,) = similarity_table(records.assign(value=np.nan)).itertuples()
    assert np.isnan(row.mean)
    assert (row.count, row.nan) == (0, 3)
    # An image that is undefined for one of two seeds is undefined, and not the other seed's value.
    (row,) = similarity_table(pd.concat([records, records.assign(seed=1, value=[0.7, 0.1, np.nan])])).itertuples()
    assert (row.mean, row.count, row.nan) == (pytest.approx(0.6), 1, 2)


def test_two_models_are_compared_image_by_image():
    first, second = seeded(ConvNet, seed=0, classes=4), seeded(ConvNet, seed=1, classes=4)
    batch = Batch(images_of(3, 16, 20) * 2 - 1, torch.tensor([0, 3, 1]), ["a", "b", "c"])
    found = compare_models(first, second, [create_method("IxG", first)], batch)["IxG"]
    maps = [create_method("IxG", net)(batch.images, batch.targets).flatten(1) for net in (first, second)]
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(*maps, strict=True)]
    absolute = [stats.spearmanr(a.abs(), b.abs()).statistic for a, b in zip(*maps, strict=True)]
    np.testing.assert_allclose(found["spearman"], expected, atol=1e-12)
    np.testing.assert_allclose(found["absolute"], absolute, atol=1e-12)
    same = compare_models(first, first, [create_method("IxG", first)], batch)["IxG"]
    for values in same.values():
        np.testing.assert_allclose(values, 1, atol=1e-6)
    flipped = sanity_check(first, [create_method("IxG", first)], batch, {}, depths=1)["IxG"]
    assert flipped["absolute_by_depth"].shape == (3, 1)
    with pytest.raises(ValueError, match="'mine' cannot be moved"):
        compare_models(first, second, [OwnMethod("mine", lambda images, targets: images, first)], batch)


def test_what_stays_more_alike_than_the_gradient_is_named():
    rows = [("Gradient", 0.1), ("Guided Backprop", 0.8), ("Grad-CAM", 0.15), ("Edges", 1.0)]
    table = pd.DataFrame(rows, columns=["method", "mean"]).assign(model="m", check="cascading", depth=1.0, similarity="spearman")
    table = table.assign(low=table["mean"] - 0.1, high=table["mean"] + 0.1, interval="i", train_accuracy=np.nan)
    table["family"] = ["gradient", "gradient", "CAM", "control"]
    (sentence,) = sanity_findings(table)
    assert sentence.endswith("clearly more alike than Gradient: Guided Backprop.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modes": ["cascade"]}, "'cascading' or 'independent'"),
        ({"label_recipe": {"epoch": 3}}, "unknown key 'epoch'. Did you mean 'epochs'"),
        ({"models": ["resnet18"]}, "label_fraction=0.03 trains nets on permuted labels from scratch.* not for 'resnet18' on 'digits'"),
        ({"label_fraction": 2.0}, "less than or equal to 1"),
        ({"depths": 0}, "greater than 0"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(SettingsError, match=message):
        settings(**changes)
