"""Records say which direction of the score is better, and which images belong together; statistics go by both."""

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import idsds
from idsds.datasets import create_dataset
from idsds.protocols import PROTOCOLS
from idsds.statistics import paired_differences, ranking_with_ties
from idsds.statistics.scores import HIGHER, LOWER

CPU = {"device": "cpu", "progress": False, "images": 12}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(512, 5)).eval()


@pytest.fixture
def images():
    return TensorDataset(torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 5)


def test_every_protocol_says_its_direction_in_the_words_of_the_statistics():
    assert {entry.direction for entry in PROTOCOLS.values()} == {HIGHER, LOWER}
    assert all((entry.direction == HIGHER) == entry.higher_is_better for entry in PROTOCOLS.values())


def test_the_best_comes_first_by_infidelity(net, images, tmp_path):
    records = idsds.evaluate({"n": net}, ["IxG", "Random", "IG"], images, protocol="infidelity", output=tmp_path / "x", **CPU)
    assert set(records["direction"]) == {LOWER}
    table = idsds.rank(records)
    assert table["method"].iloc[-1] == "Random"
    assert table["mean"].is_monotonic_increasing
    assert ranking_with_ties(records)["method"].tolist() == table["method"].tolist()
    pair = paired_differences(records, pairs=[("IG", "Random")]).iloc[0]
    assert pair["difference"] < 0
    assert pair["a_beats_b"] > 0.5
    pd.testing.assert_frame_equal(idsds.load_records(tmp_path / "x"), records)


def test_images_of_a_group_are_drawn_together(net, images, tmp_path):
    alone = idsds.evaluate({"n": net}, ["IxG"], images, protocol="single_deletion", **CPU)
    assert "group" not in alone
    images.groups = [f"photo {index // 3}" for index in range(12)]
    records = idsds.evaluate({"n": net}, ["IxG"], images, protocol="single_deletion", output=tmp_path / "x", **CPU)
    assert dict(zip(records["image_id"], records["group"], strict=True)) == {str(i): f"photo {i // 3}" for i in range(12)}
    assert idsds.rank(records)["interval"].item().endswith("over groups of images")
    pd.testing.assert_frame_equal(records.drop(columns="group"), alone)
    pd.testing.assert_frame_equal(idsds.load_records(tmp_path / "x"), records)
    images.groups = ["one"] * 3
    with pytest.raises(ValueError, match="3 groups for 12 images"):
        idsds.evaluate({"n": net}, ["IxG"], images, protocol="single_deletion", **CPU)


def test_a_setting_of_augmentations_is_no_group(net, images):
    """The protocol's setting was called ``group`` once, so that all images were one group and no interval was known."""
    images.normalisation = ((0.5,) * 3, (0.25,) * 3)
    records = idsds.evaluate({"n": net}, ["Random"], images, protocol="augmentation_robustness", **CPU)
    assert "group" not in records
    assert idsds.rank(records)["interval"].item().endswith("over images")


def test_subsets_keep_their_groups():
    photos = create_dataset("photos20")
    assert photos.groups == ["photo " + image_id.split("/")[1] for image_id in photos.image_ids]
    assert photos.subset([7, 0]).groups == ["photo 01", "photo 00"]
