"""Sanity checks from settings to the table, with a net that learns permuted labels in a second."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from idsds.common.settings import SettingsError
from idsds.datasets.splits import permuted
from idsds.methods import OwnMethod, create_method
from idsds.models import MODELS, register_model
from idsds.protocols import Batch
from idsds.protocols.sanity import compare_models, randomised_models, sanity_check
from idsds.studies.sanity_checks import SanityChecks, image_values, judged, layer_groups, sentences, similarity_table
from idsds.training.checkpoints import obtain, plan_training
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
    return SanityChecks(**{**given, **changes})


def test_permuted_labels_keep_their_numbers_and_are_keyed():
    stage = plan_training("small_test", "digits", deletion=None, fraction=0.1, permuted_labels=True, device="cpu")
    true = plan_training("small_test", "digits", deletion=None, fraction=0.1, device="cpu").split("train")
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
    stage = plan_training("mini_resnet8", "mnist5k", deletion=None, device="cpu")
    content = {name: getattr(stage, name) for name in stage.__dataclass_fields__}
    for name in ("start", "weights", "options", "fraction", "permuted_labels"):
        content.pop(name)
    content["recipe"] = stage.recipe.address
    from idsds.common.hashing import digest, versions
    from idsds.training.checkpoints import LOOP

    assert stage.key == digest({**content, "start": None, "loop": LOOP, "torch": versions()["torch"]})
    assert plan_training("mini_resnet8", "mnist5k", deletion=None, device="cpu", permuted_labels=True).key != stage.key


def test_every_check_in_one_table(home):
    records = settings().similarities(progress=False)
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
    told, first = sentences(table, judged(records))
    assert told == f"Training accuracy (top-5) on permuted labels: {learned[0]:.0%} (100%) of small_test."
    assert first.startswith("Spearman correlation with the intact maps, the top 50% of the layers randomised: IxG ")
    # Gradient is not among the methods: there is nothing to compare with.
    # What was trained and computed is there the second time.
    plan = settings().plan().table
    assert not plan["work"].str.contains("train").any()
    pd.testing.assert_frame_equal(settings().similarities(progress=False), records)


def test_labels_that_were_not_learned_are_told_and_the_check_can_be_left_out():
    with pytest.warns(UserWarning, match=r"has learned \d+% of its permuted labels; the paper requires more than 95%"):
        records = settings(label_recipe={"epochs": 1, "lr": 1e-6}, modes=["cascading"]).similarities(progress=False)
    assert records["train_accuracy"].max() < 0.5
    assert settings().plan().table["work"].str.contains("permuted").sum() == 1  # another recipe: not cached
    without = settings(label_fraction=0.0, modes=["independent"]).similarities(progress=False)
    assert set(without["check"]) == {"independent"}


def test_new_weights_are_drawn_several_times_on_one_net(home):
    """Each draw by hand: the net of the training seed, its layers randomised by the seed of the draw."""
    given = {"label_fraction": 0.0, "modes": ["cascading"], "methods": ["IxG", "Random"]}
    records = settings(**given, draws=3).similarities(progress=False)
    assert len(records) == 12 * 2 * 2 * 3 * 3
    keys = settings(draws=3).draw_seeds(0)
    assert keys[0] == 0
    assert len(set(keys)) == 3
    assert keys[:2] == settings(draws=2).draw_seeds(0), "a draw that is added leaves the others as they are"
    assert set(keys[1:]).isdisjoint(settings(draws=3).draw_seeds(1))
    stage = plan_training("small_test", "digits", deletion=None, device="cpu")
    model, test = obtain(stage, progress=False), stage.split("test")
    chosen = [test[test.image_ids.index(name)] for name in records["image_id"].unique()[:3]]
    images, targets = torch.stack([image for image, _, _ in chosen]), torch.tensor([target for _, target, _ in chosen])
    for draw, key in enumerate(keys):
        other = list(randomised_models(model, "cascading", 2, key))[-1]
        maps = [create_method("IxG", net)(images, targets).flatten(1) for net in (model, other)]
        wanted = [stats.spearmanr(a, b).statistic for a, b in zip(*(found.numpy() for found in maps), strict=True)]
        rows = records[(records["draw"] == draw) & (records["method"] == "IxG") & (records["depth"] == 1)]
        rows = rows[rows["similarity"] == "spearman"].set_index("image_id").loc[[name for _, _, name in chosen]]
        np.testing.assert_allclose(rows["value"], wanted, atol=1e-5)
    once = settings(**given).similarities(progress=False)
    first = records[records["draw"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(once.drop(columns="draw"), first.drop(columns="draw"))
    row = similarity_table(records).query("method == 'IxG' and depth == 1 and similarity == 'spearman'").iloc[0]
    values = records.query("method == 'IxG' and depth == 1 and similarity == 'spearman'").groupby("image_id")["value"].mean()
    interval = stats.ttest_1samp(values, 0).confidence_interval()
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((values.mean(), interval.low, interval.high))
    assert row["interval"] == "95 % t interval over images, 3 draws of weights held fixed"
    plan = settings(**given, draws=3).plan().table
    assert plan.loc[plan["epochs"].isna(), "draw"].nunique() == 3
    planned = settings(**given, draws=3, seeds=[7]).plan().table
    assert planned["epochs"].notna().sum() == 1, "one net, trained once, whatever the draws"


def test_groups_of_layers_are_named_as_they_are_randomised():
    model = small = MODELS["small_test"].build(10)
    before = small.state_dict()
    for mode in ("cascading", "independent"):
        for name, other in zip(layer_groups("small_test", mode, 2), randomised_models(model, mode, 2), strict=True):
            after = other.state_dict()
            changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
            ends = set(name.split(" to "))
            assert ends & {"fc", "conv"} <= changed <= {"fc", "norm", "conv"}
    assert layer_groups("small_test", "cascading", 3) == ["fc", "fc to norm", "fc to conv"]
    assert layer_groups("small_test", "independent", 3) == ["fc", "norm", "conv"]
    assert layer_groups("small_test", "independent", 4)[0] == "none"


def similarities(values, **facts):
    """Records of one method, check and similarity: one row per image."""
    table = pd.DataFrame({"image_id": [f"i{number}" for number in range(len(values))], "value": values})
    given = {
        "depth": 1.0,
        "seed": 0,
        "draw": 0,
        "train_accuracy": np.nan,
        "train_top5": np.nan,
        "layers": "",
        "model": "m",
        "method": "IG",
        "family": "gradient",
    }
    return table.assign(**{**given, "check": "cascading", "similarity": "ssim", **facts})


def test_undefined_values_are_counted():
    records = similarities([0.5, np.nan, 0.7])
    (row,) = similarity_table(records).itertuples()
    assert (row.mean, row.count, row.nan, row.undefined, row.maps) == (pytest.approx(0.6), 2, 1, 1, 3)
    (row,) = similarity_table(records.assign(value=np.nan)).itertuples()
    assert np.isnan(row.mean)
    assert (row.count, row.nan) == (0, 3)
    # An image that is undefined for one of two seeds is undefined, and not the other seed's value.
    (row,) = similarity_table(pd.concat([records, records.assign(seed=1, value=[0.7, 0.1, np.nan])])).itertuples()
    assert (row.mean, row.count, row.nan) == (pytest.approx(0.6), 1, 2)
    # Of two draws, which are interchangeable, the one with a value stands for both.
    both = pd.concat([records, records.assign(draw=1, value=[0.7, 0.1, np.nan])])
    assert image_values(both).tolist() == pytest.approx([0.6, 0.1, 0.7])
    (row,) = similarity_table(both).itertuples()
    assert (row.count, row.nan, row.undefined, row.maps) == (3, 0, 2, 6)
    assert "IG 0.47 [" in sentences(similarity_table(both.assign(similarity="spearman")), judged(both))[0]


def test_training_seeds_are_drawn_with_the_images():
    """Two nets of which one always fails: neither the mean similarity nor the claim is settled by them."""
    noise = 0.01 * np.random.default_rng(0).normal(size=(2, 30))
    each = [(method, seed) for method in ("Gradient", "Guided Backprop") for seed in (0, 1)]
    values = {
        ("Gradient", 0): noise[0],
        ("Gradient", 1): noise[1],
        ("Guided Backprop", 0): noise[1] + 0.8,
        ("Guided Backprop", 1): noise[0],
    }
    records = pd.concat([similarities(values[method, seed], method=method, seed=seed) for method, seed in each])
    row = similarity_table(records).set_index("method").loc["Guided Backprop"]
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((0.4 + noise.mean(), 0, 0.8), abs=0.01)
    assert (row["count"], row["interval"]) == (30, "95 % percentile bootstrap over training seeds and images")
    (row,) = judged(records).itertuples()
    assert (row.low, row.high, row.found, row.verdict) == (
        pytest.approx(0, abs=0.01),
        pytest.approx(0.8, abs=0.01),
        "undecided",
        "not supported",
    )
    (row,) = judged(records[records["seed"] == 0]).itertuples()
    assert (row.found, row.verdict, row.interval) == ("fails", "supported", "95 % t interval over images")


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


def test_the_claim_is_judged_by_differences_on_the_same_images():
    """Spread over images is shared, so that separate intervals would overlap; the paired ones are those of scipy."""
    rng = np.random.default_rng(0)
    shared, noise = 0.5 * rng.normal(size=40), 0.02 * rng.normal(size=(3, 40))
    scores = {"Gradient": shared, "Guided Backprop": shared + 0.15 + noise[0], "Grad-CAM": shared + 0.05 + noise[1], "Edges": shared + 1}
    scores["Guided Grad-CAM"] = shared + 0.1 + noise[2]
    records = pd.concat([similarities(values, method=name, similarity="ssim") for name, values in scores.items()])
    table = judged(records).set_index("method")
    assert table["found"].to_dict() == {"Grad-CAM": "passes", "Guided Backprop": "fails", "Guided Grad-CAM": "undecided"}
    assert table["verdict"].to_dict() == {"Grad-CAM": "supported", "Guided Backprop": "supported", "Guided Grad-CAM": "not supported"}
    wanted = stats.ttest_rel(scores["Guided Backprop"], scores["Gradient"]).confidence_interval()
    row = table.loc["Guided Backprop"]
    assert (row["low"], row["high"]) == pytest.approx((wanted.low, wanted.high))
    alone = similarity_table(records).set_index("method")
    assert alone.loc["Guided Backprop", "low"] < alone.loc["Gradient", "high"], "the two intervals do overlap"
    assert judged(records[records["method"] != "Gradient"]).empty
    turned = records.replace({"method": {"Guided Backprop": "Grad-CAM", "Grad-CAM": "Guided Backprop"}})
    assert judged(turned).set_index("method")["verdict"].to_dict() == {
        "Grad-CAM": "contradicted",
        "Guided Backprop": "contradicted",
        "Guided Grad-CAM": "not supported",
    }
    assert sentences(similarity_table(records), judged(records))[0] == (
        "Of 3 comparisons 2 support and 0 contradict the claim; a method fails where its maps stay more similar "
        "than Gradient's by over 0.1."
    )


def test_methods_are_compared_on_the_same_new_weights():
    """A draw in which one of the two has no value says nothing of their difference."""
    gradient = pd.concat([similarities([0.1, 0.2, 0.3], method="Gradient"), similarities([0.8, 0.9, 1.0], method="Gradient", draw=1)])
    cam = pd.concat([similarities([0.2, 0.35, 0.4], method="Grad-CAM"), similarities([0.9, np.nan, np.nan], method="Grad-CAM", draw=1)])
    (row,) = judged(pd.concat([gradient, cam])).itertuples()
    each = [(0.1 + 0.1) / 2, 0.15, 0.1]
    interval = stats.ttest_1samp(each, 0).confidence_interval()
    assert (row.difference, row.low, row.high) == pytest.approx((np.mean(each), interval.low, interval.high))
    assert (row.count, row.nan, row.undefined, row.maps) == (3, 0, 2, 6)


def test_the_gradient_itself_is_judged_by_spearman_alone():
    noise = 0.02 * np.random.default_rng(0).normal(size=30)
    for mean, found in [(0.0, "passes"), (0.3, "fails"), (-0.3, "fails"), (0.1, "undecided"), (-0.1, "undecided")]:
        (row,) = judged(similarities(noise + mean, method="Gradient", similarity="spearman")).itertuples()
        assert row.found == found
    assert judged(similarities(noise, method="Gradient", similarity="ssim")).empty


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modes": ["cascade"]}, "'cascading' or 'independent'"),
        ({"label_recipe": {"epoch": 3}}, "unknown key 'epoch'. Did you mean 'epochs'"),
        ({"models": ["resnet18"]}, "label_fraction=0.03 trains nets on permuted labels from scratch.* not for 'resnet18' on 'digits'"),
        ({"label_fraction": 2.0}, "less than or equal to 1"),
        ({"depths": 0}, "greater than 0"),
        ({"draws": 0}, "greater than 0"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(SettingsError, match=message):
        settings(**changes)
