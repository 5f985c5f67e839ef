import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.utils.data import Dataset, Subset

import idsds
from idsds.common.normalisation import Normalisation
from idsds.common.registry import UnknownNameError
from idsds.studies import gallery

METHODS = ["IxG", "IxG-SG", "IG abs", "Grad-CAM", "Random"]
NORMALISATION = Normalisation((0.2, 0.5, 0.4), (0.5, 0.25, 0.3))


@pytest.fixture(scope="module")
def examples(checkpoint):
    return gallery.explain(
        ["mini_resnet8"], METHODS, images=3, seed=[0, 1], checkpoints={"mini_resnet8": checkpoint}, device="cpu", progress=False
    )


@pytest.fixture(scope="module")
def records(checkpoint):
    # Other batches than those of the gallery, on purpose.
    return idsds.evaluate(
        ["mini_resnet8"],
        METHODS,
        images=3,
        seed=[0, 1],
        checkpoints={"mini_resnet8": checkpoint},
        device="cpu",
        batch_size=2,
        progress=False,
    )


def test_scores_are_those_of_evaluate(examples, records):
    assert [(e.seed, e.image_id) for e in examples] == list(dict.fromkeys(zip(records.seed, records.image_id, strict=True)))
    for example in examples:
        rows = records[(records.seed == example.seed) & (records.image_id == example.image_id)].set_index("method")
        assert list(example.maps) == list(example.records.index) == METHODS
        # 1e-6: batches of another size round differently; ranks, and so scores, agree.
        np.testing.assert_allclose(example.records["score"], rows["score"], atol=1e-6)
        np.testing.assert_allclose(example.drops.ravel(), rows["drops"].iloc[0], atol=1e-5)


def test_a_score_is_the_rank_correlation_of_what_is_shown(examples):
    for example in examples:
        for name, shown in example.maps.items():
            sums = shown.reshape(4, 8, 4, 8).sum(axis=(1, 3)).ravel()
            assert example.records.loc[name, "score"] == pytest.approx(
                spearmanr(sums, example.drops.ravel()).statistic, abs=1e-6, nan_ok=True
            )


def test_maps_are_those_that_were_scored_and_others_are_told_apart(examples):
    assert gallery.disagreement(examples) < 1e-5
    one = examples[0]
    shuffled = {**one.maps, "Random": one.maps["Random"][::-1]}
    assert gallery.disagreement([gallery.Example(**{**vars(one), "maps": shuffled})]) > 1e-2
    holed = {**one.maps, "IxG": np.full((32, 32), np.nan)}
    assert gallery.disagreement([gallery.Example(**{**vars(one), "maps": holed})]) == np.inf


def test_pictures_classes_and_logits(examples, checkpoint):
    data = idsds.create_dataset("mnist5k", "test")
    model = idsds.create_model("mini_resnet8", checkpoint=checkpoint)
    for example in examples:
        image, target, _ = data[data.image_ids.index(example.image_id)]
        with torch.inference_mode():
            (logits,) = model(image[None])
        assert (example.target, example.prediction) == (str(target), str(int(logits.argmax())))
        assert (example.target_logit, example.prediction_logit) == pytest.approx((float(logits[target]), float(logits.max())), abs=1e-5)
        assert example.picture.shape == (32, 32, 3)
        np.testing.assert_allclose(example.picture, data.read(data.image_ids.index(example.image_id)).permute(1, 2, 0), atol=1e-6)


def test_tables_hold_what_is_drawn(examples):
    scores, patches = gallery.score_table(examples), gallery.patch_table(examples)
    assert len(scores) == 2 * 3 * len(METHODS)
    assert list(patches.columns) == ["model", "seed", "image_id", "patch", "drop", *METHODS]
    assert len(patches) == 2 * 3 * 16
    np.testing.assert_allclose(patches["drop"][:16].astype(float), examples[0].drops.ravel(), rtol=1e-5)
    assert scores["score"].iloc[0] == examples[0].records["score"].iloc[0]


def own(normalise):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 16, 24)
    return [(NORMALISATION(image) if normalise else image, number) for number, image in enumerate(images)], images


def linear():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 24, 2)).eval()


def test_a_net_a_method_and_images_of_your_own():
    data, images = own(normalise=True)
    model = linear()
    methods = {"mine": lambda images, targets: images * model[1].weight[targets].view_as(images), "constant": lambda images, _: images * 0}
    examples = gallery.explain(
        {"net": model}, methods, data, images=2, normalisation=NORMALISATION, protocol="single_deletion", device="cpu", progress=False
    )
    by_id = {example.image_id: example for example in examples}
    for number in range(2):
        example = by_id[str(number)]
        np.testing.assert_allclose(example.picture, images[number].permute(1, 2, 0), atol=1e-6)
        # Input x gradient of a linear net is what a deletion takes away.
        assert example.records.loc["mine", "score"] == pytest.approx(1)
        assert np.isnan(example.records.loc["constant", "score"])
        assert (example.score, example.target) == ("SDS", str(number))
    assert pd.isna(gallery.score_table(examples).query("method == 'constant'").score).all()
    assert gallery.best(gallery.score_table(examples)) == "Highest score on 2 images with a defined score: mine on 2."


class Told(Dataset):
    """Images that say what they went through and what their classes are called."""

    normalisation, classes = NORMALISATION, ["cat", "dog"]

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return own(normalise=True)[0][index]


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_a_data_set_of_your_own_says_of_itself_is_used(wrapped):
    data = Subset(Told(), [0, 1]) if wrapped else Told()
    examples = gallery.explain({"net": linear()}, ["IxG"], data, images=2, protocol="single_deletion", device="cpu", progress=False)
    for example in examples:
        number = int(example.image_id)
        np.testing.assert_allclose(example.picture, own(normalise=True)[1][number].permute(1, 2, 0), atol=1e-6)
        assert example.target == ("cat", "dog")[number]


def test_images_that_cannot_be_shown_are_refused_before_any_work():
    with pytest.raises(ValueError, match=r"and not from 0 to 1: pass its normalisation="):
        gallery.explain({"net": linear()}, {"never": lambda images, targets: images}, own(normalise=True)[0], images=2, progress=False)


def test_an_unknown_protocol_is_refused():
    with pytest.raises(UnknownNameError, match=r"'idsd'.*idsds"):
        gallery.explain(["mini_resnet8"], ["IxG"], protocol="idsd")
