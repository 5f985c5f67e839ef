"""A user's data set in :func:`idsds.evaluate`: what is wrong with an item is named before any work is done."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import idsds
from idsds.common.normalisation import Normalisation, as_normalisation
from idsds.common.numbers import as_whole, plain

PIXELS = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))


class Items(torch.utils.data.Dataset):
    """Six items, all alike but for those named."""

    def __init__(self, item, **others):
        self.items = {**dict.fromkeys(range(6), item), **{int(place[1:]): other for place, other in others.items()}}

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def net(classes=5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(512, classes)).eval()


def run(dataset, **changes):
    arguments = {"protocol": "single_deletion", "device": "cpu", "progress": False, **changes}
    return idsds.evaluate({"n": net()}, ["IxG"], dataset, **arguments)


@pytest.mark.parametrize("label", [0.7, 3.0, float("nan"), torch.eye(5)[1], np.eye(5)[1], "cat", None, True])
def test_labels_that_are_no_classes_are_refused_where_they_are_read(label):
    with pytest.raises(TypeError, match="label of image '4'"):
        run(Items((PIXELS, 1), _4=(PIXELS, label)))
    with_label = run(Items((PIXELS, 1), _4=(PIXELS, label)), target="prediction")
    assert with_label["score"].equals(run(Items((PIXELS, None)), target="prediction")["score"])


@pytest.mark.parametrize("label", [5, -1])
def test_labels_beyond_the_classes_are_named(label):
    with pytest.raises(ValueError, match=rf"image '4' is {label}, but 'n' has 5 classes"):
        run(Items((PIXELS, 1), _4=(PIXELS, label)))


@pytest.mark.parametrize("item", [{"image": PIXELS * 0.5, "label": 1}, {"img": Image.new("RGB", (32, 32)), "label": np.int64(1)}])
def test_the_wrapper_runs_as_it_stands(item):
    with pytest.raises(TypeError) as raised:
        run(Items(item))
    to_tensor = lambda image: image if isinstance(image, torch.Tensor) else torch.zeros(3, *image.size)  # noqa: E731
    names = {"torch": torch, "data": Items(item), "to_tensor": to_tensor}
    exec(str(raised.value).split("wrap it:\n")[1], names)
    assert len(run(names["Wrapped"]())) == 6


def test_an_item_that_is_none_is_left_out():
    """Wherever it lies: the first of the data set, or the first in the fixed order."""
    for place in range(6):
        with pytest.warns(UserWarning, match="1 of 6 records are missing"):
            assert len(run(Items((PIXELS, 1), **{f"_{place}": None}))) == 5


def test_unlike_images_are_named():
    with pytest.raises(ValueError, match=r"\(3, 32, 32\) \('0'\) and \(3, 40, 40\) \('4'\)"):
        run(Items((PIXELS, 1), _4=(torch.rand(3, 40, 40), 1)))
    broken = PIXELS.clone()
    broken[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="image '4' has NaN pixels"):
        run(Items((PIXELS, 1), _4=(broken, 1)))
    with pytest.raises(TypeError, match="image '4' must be a float tensor"):
        run(Items((PIXELS, 1), _4=(Image.new("RGB", (32, 32)), 1)))


def test_values_outside_the_stated_range_are_named():
    half = ((0.5,) * 3, (0.5,) * 3)
    stated = Items((PIXELS * 2 - 1, 1), _4=(PIXELS * 255, 1))
    stated.normalisation = half
    with pytest.raises(ValueError, match=r"image '4' goes from .* not from 0 to 1"):
        run(stated)
    with pytest.raises(ValueError, match="image '4' goes from"):
        run(Items((PIXELS * 2 - 1, 1), _4=(PIXELS * 255, 1)), normalisation=half)
    assert len(run(Items((PIXELS * 2 - 1, 1)), normalisation=half)) == 6


def test_normalisation_by_the_data_set_or_the_caller(tmp_path):
    options = {"protocol": "augmentation_robustness", "kind": "filters"}
    said = Items((PIXELS, 1))
    said.normalisation = ((0.5,) * 3, (0.25,) * 3)
    by_data = run(said, output=tmp_path / "x", **options)
    assert by_data["score"].equals(run(Items((PIXELS, 1)), normalisation=((0.5,) * 3, (0.25,) * 3), **options)["score"])
    other = run(Items((PIXELS, 1)), normalisation=(0.0, 1.0), output=tmp_path / "x", **options)
    fresh = run(Items((PIXELS, 1)), normalisation=(0.0, 1.0), **options)
    assert other["score"].equals(fresh["score"]), "a number of another normalisation was reused"
    with pytest.raises(ValueError, match="normalisation"):
        run(Items((PIXELS, 1)), **options)


def test_ways_to_say_a_normalisation():
    from torchvision.transforms import v2

    known = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    for given in (known, ((0.5,) * 3, (0.25,) * 3), (0.5, 0.25), v2.Normalize([0.5] * 3, [0.25] * 3), np.array([[0.5] * 3, [0.25] * 3])):
        assert as_normalisation(given) == known
    assert as_normalisation(None) is None
    for wrong in ("imagenet", 0.5, (0.5,), ((0.5, 0.5), (1, 1)), (0.5, 0.0), (float("nan"), 1.0)):
        with pytest.raises((TypeError, ValueError), match="normalisation must be"):
            as_normalisation(wrong)


def test_the_default_takes_all_of_few_images():
    assert len(run(Items((PIXELS, 1)))) == 6
    with pytest.raises(ValueError, match="images=200, but this split has 6"):
        run(Items((PIXELS, 1)), images=200)


def test_integers_of_numpy_and_torch_are_integers_everywhere():
    plainly = run(Items((PIXELS, 1)), images=4, seed=1, grid=4, batch_size=2)
    for kind in (np.int64, np.uint8, torch.tensor):
        theirs = run(Items((PIXELS, 1)), images=kind(4), seed=kind(1), grid=kind(4), batch_size=kind(2))
        assert theirs.drop(columns=["drops", "patch_sums"]).equals(plainly.drop(columns=["drops", "patch_sums"]))
    for several in ([np.int64(0), 1], np.arange(2), torch.arange(2), range(2)):
        assert sorted(set(run(Items((PIXELS, 1)), images=2, seed=several)["seed"])) == [0, 1]
    assert sorted(set(run(Items((PIXELS, 1)), images=2, grid=np.array([2, 4]))["grid"])) == [2, 4]


@pytest.mark.parametrize("value", [0, -1, 1.0, np.float64(2), True, np.True_, "3", None, torch.tensor([1, 2]), torch.tensor(1.0)])
def test_other_things_are_no_whole_numbers(value):
    with pytest.raises(ValueError, match="images must be a whole number of at least 1"):
        as_whole("images", value)


def test_plain_numbers():
    assert [type(plain(value)) for value in (np.int8(1), torch.tensor(1.5), np.True_, "a", [1])] == [int, float, bool, str, list]
