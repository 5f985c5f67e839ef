"""ROAR and KAR from settings to areas, with a net that trains in a second and images whose informative pixels are known."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from idsds.common.files import DamagedFileError
from idsds.common.settings import SettingsError
from idsds.datasets import create_dataset, fixed_order
from idsds.methods import METHODS, Passes, create_method, register_method
from idsds.models.weights import save_checkpoint
from idsds.protocols.roar import MASK, pixel_ranks
from idsds.studies.roar import Roar, retraining_areas, retraining_curves
from idsds.studies.roar import pixel_ranks as ranks_module
from idsds.studies.roar import retraining as retrained
from idsds.studies.roar import study as retraining
from idsds.studies.roar.curves import sentences
from idsds.training.checkpoints import obtain
from tests.studies.roar.conftest import Small

pytestmark = pytest.mark.filterwarnings("ignore:method 'Undefined' gave a NaN:RuntimeWarning")


def settings(**changes):
    given = {
        "dataset": "synthetic",
        "models": ["small_test"],
        "methods": ["Exact", "Random"],
        "images": 60,
        "shares": [0.0, 0.5],
        "seeds": [0],
    }
    given |= {"train_images": 60, "recipe": {"epochs": 1}, "target": "label", "device": "cpu", "output": "runs/x/roar"}
    return Roar(**{**given, **changes})


def test_known_informative_pixels_are_found():
    """Nine of 16 patches hold all evidence: without them nothing is left to learn, and a fraction of them alone will do."""
    informative = 9 / 16
    recipe = {"epochs": 6, "batch_size": 32, "lr": 0.02}
    chosen = settings(shares=[0.0, informative, 0.95], images=100, train_images=300, recipe=recipe, mask_only=False)
    table = chosen.retrain(progress=False)
    assert len(table) == 2 * 2 * 3
    accuracy = table.set_index(["method", "kind", "share"])["accuracy"]
    assert accuracy["Exact", "remove", 0.0] > 0.9
    # Guessing one of four classes: 0.25, with a standard error over 100 images of 0.043, of which four are 0.17.
    assert accuracy["Exact", "remove", informative] < 0.25 + 0.17
    assert accuracy["Random", "remove", informative] > 0.6
    # A twentieth of the pixels, the right ones, hold the class; the others hold nothing.
    assert accuracy["Exact", "keep", 0.95] > 0.9
    assert accuracy["Exact", "remove", 0.95] < 0.25 + 0.17
    areas = retraining_areas(table).set_index("kind")["area"]
    assert areas["remove"] > 0.2


def test_two_seeds_resume_and_intervals(home, monkeypatch):
    """A run that dies in its third retraining goes on there, and ends with the numbers of one that did not."""
    chosen = settings(seeds=[0, 1], methods=["Undefined", "Random"])
    whole = chosen.retrain(progress=False)
    assert len(whole) == 2 * 2 * 2 * 2 + 2 * 2 * 1  # ROAR and KAR at two shares, masks alone at one
    for row in whole.itertuples():
        low, high = stats.binomtest(round(row.accuracy * 60), 60).proportion_ci(method="wilson")
        assert (row.low, row.high) == pytest.approx((low, high))
    untouched = whole[whole["share"] == 0].groupby("seed")["accuracy"].nunique()
    assert (untouched == 1).all()  # one retraining for all methods and kinds
    results = list((home / "cache" / "roar").glob("small_test-*.json"))
    assert len(results) == 2 * (1 + 2 * 2 + 2)  # per seed
    undefined = whole.set_index("method")[["undefined", "constant", "explained"]].drop_duplicates()
    # A quarter of the images is of each class: 60 + 10 + 60 are explained.
    of_class = [sum(_targets(split, count).count(label) for split, count in (("train", 60), ("val", 10), ("test", 60))) for label in (0, 1)]
    assert undefined.loc["Undefined"].tolist() == [*of_class, 130]
    assert undefined.loc["Random"].tolist() == [0, 0, 130]

    monkeypatch.setenv("IDSDS_CACHE", str(home / "other"))
    fit, calls = retrained.fit, []

    def dying(model, plan):
        calls.append(plan.label)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fit(model, plan)

    monkeypatch.setattr(retrained, "fit", dying)
    with pytest.raises(KeyboardInterrupt):
        chosen.retrain(progress=False)
    monkeypatch.setattr(ranks_module, "shared_maps", None)  # no map is computed again
    again = chosen.retrain(progress=False)
    assert len(calls) == 2 + 1 + (14 - 2)
    pd.testing.assert_frame_equal(again, whole)
    saved = pd.read_csv(home / "runs/x/roar/roar.csv")
    np.testing.assert_allclose(saved["accuracy"], whole["accuracy"])


def _targets(split, count):
    data = create_dataset("synthetic", split)
    return [data.targets[index] for index in fixed_order(data.image_ids)[:count]]


def test_a_dry_run_says_what_is_left_and_trains_nothing(home):
    before = settings(dry_run=True).plan_table().set_index("work")
    assert before["total"].to_dict() == {
        "train the net that is explained": 1,
        "maps: Exact": 130,
        "maps: Random": 130,
        "predictions of the net that is explained": 60,
        "retrain": 1 + 2 * 2,
        "retrain on masks alone": 2,
    }
    assert (before["cached"] == 0).all()
    assert before["steps"].dropna().tolist() == [5 * 1, 2 * 1]  # one batch of 60 images each
    assert before["forward"]["predictions of the net that is explained"] == 60
    assert (before["hours"] > 0).all()
    assert not list((home / "cache").rglob("*.npy"))
    settings(mask_only=False).retrain(progress=False)
    after = settings().plan_table().set_index("work")
    assert after["total"].to_dict() == {work: total for work, total in before["total"].items() if not work.startswith("train ")}
    assert (after["total"] - after["cached"]).loc[lambda left: left > 0].to_dict() == {"retrain on masks alone": 2}
    assert after["hours"].loc[lambda hours: hours > 0].index.tolist() == ["retrain on masks alone"]
    settings().retrain(progress=False)
    assert settings().plan_table()["hours"].sum() == 0
    assert "retrain on masks alone" not in set(settings(mask_only=False).plan_table()["work"])


def test_ranks_are_kept_as_they_are_computed(home, monkeypatch):
    """Two shards, one of which is lost: it alone is made again. Ranks on disk are those of the method's maps."""
    monkeypatch.setattr(ranks_module, "SHARD", 40)
    (plan,) = [retraining._Planned(settings(), "small_test")]
    plan.explain(progress=False)
    found = plan.ranks["Exact"]["train"]
    files = sorted(found.folder.glob("*.npy"))
    assert len(files) == 2
    assert np.load(files[1]).shape == (20, 32, 32)
    assert np.load(files[1]).dtype == np.uint16
    data = plan.data["train"]
    image, target, image_id = data[45]
    maps = create_method("Exact", Small(4))(image[None], torch.tensor([target]), [image_id])
    torch.testing.assert_close(found[45][None], pixel_ranks(maps, [image_id]))
    written = files[0].stat().st_mtime_ns
    files[1].unlink()
    retraining._Planned(settings(), "small_test").explain(progress=False)
    assert files[1].is_file()
    assert files[0].stat().st_mtime_ns == written
    files[1].write_bytes(b"damaged")
    with pytest.raises(DamagedFileError, match="cannot read the ranks"):
        retraining._Planned(settings(), "small_test").ranks["Exact"]["train"][45]


def test_ranks_belong_to_the_content_of_the_weights(home):
    """Another net in the place of the one that is explained has ranks, predictions and retrainings of its own."""
    one = retraining._Planned(settings(), "small_test")
    unknown = one.ranks["Exact"]["train"].key
    one.explain(progress=False)
    assert unknown != one.ranks["Exact"]["train"].key == retraining._Planned(settings(), "small_test").ranks["Exact"]["train"].key
    torch.manual_seed(3)
    save_checkpoint(Small(4), one.explained.path)
    other = retraining._Planned(settings(), "small_test")
    assert other.explained_path != one.explained_path
    assert other.ranks["Exact"]["test"].missing
    assert {each.key for each in other.retrainings() if each.ranks}.isdisjoint(each.key for each in one.retrainings())


def tells_the_class(model, images, targets):
    """One row of 32 pixels, whose place, within the patches that the net sees, is the explained class."""
    maps = torch.zeros(len(images), 32, 32)
    maps[torch.arange(len(images)), targets] = 1.0
    return maps


def test_masks_that_tell_the_class_are_found_and_no_image_is_needed():
    """A map that points at the class instead of the evidence: the mask alone gives it away, and KAR must not praise the map for it."""
    register_method("Tells", family="own", passes=Passes(0))(tells_the_class)
    try:
        given = {"shares": [0.0, 31 / 32], "kinds": ["keep"], "recipe": {"epochs": 6, "batch_size": 32, "lr": 0.02}}
        table = settings(methods=["Tells", "Exact", "Random"], train_images=200, **given).retrain(progress=False)
    finally:
        METHODS.remove("Tells")
    masks = table[table["kind"] == MASK].set_index(["method", "share"])["accuracy"]
    assert set(masks.index.get_level_values("share")) == {1 / 32}, "the complement of what KAR replaces"
    assert masks["Tells"].min() > 0.9
    # Guessing one of four classes: 0.25, with a standard error over 60 images of 0.056, of which four are 0.22.
    assert masks[["Exact", "Random"]].max() < 0.25 + 0.22, "where the evidence stands, and for which class it is, are drawn apart"
    assert retraining_areas(table).set_index("method")["leaking"].to_dict() == {"Tells": "Tells", "Exact": ""}
    curves = retraining_curves(table)
    assert sentences(retraining_areas(table), curves)[-1].endswith("for 1 of 3 masks (Tells; Holm-corrected).")


def test_agreement_is_with_the_explained_net_and_not_with_the_label():
    """By hand, from the two files of predictions; an image that cannot be read counts in neither."""
    table = settings(methods=["Random"], kinds=["remove"]).retrain(progress=False)
    (plan,) = [retraining._Planned(settings(methods=["Random"], kinds=["remove"]), "small_test")]
    explained, targets = plan.predicted()["predicted"], _targets("test", 60)
    assert table["explained_accuracy"].unique().tolist() == pytest.approx([np.mean(np.equal(explained, targets))])
    assert table["chance"].unique().tolist() == pytest.approx([max(targets.count(label) for label in range(4)) / 60])
    for one, row in zip(plan.retrainings(), table.itertuples(), strict=True):
        predicted = one.result("cpu", "32-true", settings().machine)["predicted"]
        assert row.agreement == pytest.approx(np.mean(np.equal(predicted, explained)))
        assert row.accuracy == pytest.approx(np.mean(np.equal(predicted, targets)))
    assert retrained.compared([1, None, 2, 3], [1, 1, None, 0]) == (1, 2)
    net = obtain(plan.explained, progress=False)
    with torch.no_grad():
        alone = [net(plan.data["test"][index][0][None]).argmax().item() for index in range(60)]
    assert alone == explained


def test_addresses_hold_what_determines_a_result():
    def keys(**changes):
        (plan,) = [retraining._Planned(settings(**changes), "small_test")]
        return {(one.method, one.kind, one.share): one.key for one in plan.retrainings()}

    plain = keys()
    assert len(set(plain.values())) == 1 + 2 * 2 + 2
    some, mask = ("Exact", "remove", 0.5), ("Exact", MASK, 0.5)
    for change in ({"fill": "black"}, {"target": "prediction"}, {"train_images": 50}, {"recipe": {"epochs": 2}}, {"explained_seed": 3}):
        assert keys(**change)[some] != plain[some]
        assert (keys(**change)[mask] != plain[mask]) == (change != {"fill": "black"}), "a mask alone is filled with nothing"
    assert keys(explained_seed=3)["Exact", "remove", 0.0] == plain["Exact", "remove", 0.0]  # nothing replaced, whoever explains
    assert set(keys(mask_only=False)) == {key for key in plain if key[1] != MASK}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["Exact"]}, "methods must list 'Random'"),
        ({"shares": [0.5, 0.1]}, "shares must ascend"),
        ({"shares": [0.1, 0.5]}, "shares must begin with 0, the untouched images .* not 0.1"),
        ({"shares": [0.1, 10]}, "less than or equal to 1"),
        ({"kinds": ["drop"]}, "'remove' or 'keep'"),
        ({"recipe": {"epoch": 3}}, "unknown key 'epoch'. Did you mean 'epochs'"),
        ({"methods": ["BagNet", "Random"]}, "method 'BagNet' does not apply to 'small_test'"),
        ({"models": ["resnet50"]}, "'resnet50' needs a trained net to explain on 'synthetic'"),
        ({"checkpoints": {"small_test": "none.pth"}}, "no file"),
        ({"root": "x"}, "unknown option of data set 'synthetic' 'root'"),
        ({"seeds": [1, 1]}, "seeds lists 1 more than once"),
    ],
)
def test_mistakes_are_named_before_any_work(changes, message):
    with pytest.raises(SettingsError, match=message):
        settings(**changes)


def test_more_images_than_there_are():
    with pytest.raises(ValueError, match="images=1000, but the test split of 'synthetic' has 300"):
        settings(images=1000).retrain(progress=False)
