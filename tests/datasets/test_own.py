"""A user's own data set: labels, items and pixels are taken as they are, or refused by name."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

import idsds
from idsds.common.normalisation import UNIT
from idsds.datasets.base import ImageDataset, class_index, collate
from idsds.datasets.own import UNLABELLED, as_image_dataset


class Own(Dataset):
    def __init__(self, items, **said):
        self.items = items
        self.__dict__.update(said)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def image(seed=0, size=8):
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("label", [3, np.int64(3), np.uint8(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8), np.array(3)])
def test_integers_of_every_kind_are_labels(label):
    assert class_index(label, "a") == 3
    assert type(class_index(label, "a")) is int


@pytest.mark.parametrize(
    "label", [0.7, -0.4, 3.0, float("nan"), True, "3", None, torch.tensor([0.0, 1.0]), np.eye(3)[1], torch.tensor(0.5), [0, 1]]
)
def test_anything_else_is_refused_by_name(label):
    with pytest.raises(TypeError, match=r"the label of image '7' must be an integer class"):
        class_index(label, "7")
    with pytest.raises(TypeError, match="'7'"):
        as_image_dataset(Own([(image(), label, "7")]))
    assert as_image_dataset(Own([(image(), label, "7")]), labels=False)[0][1] == UNLABELLED
    with pytest.raises(TypeError, match="'7'"):
        ImageDataset("d", "test", ["7"], [label], image, ["a"], UNIT)


def test_one_hot_labels_say_what_to_pass():
    with pytest.raises(TypeError, match=r"one-hot or soft labels pass the index of the class, such as argmax\(\)"):
        class_index(torch.tensor([0.0, 1.0]), "7")


@pytest.mark.parametrize(
    ("item", "shown"),
    [
        ({"pixel_values": None, "label": 3}, "int\\(item\\['label'\\]\\)"),
        ({"image": None, "fine_label": 3}, "to_tensor\\(item\\['image'\\]\\), int\\(item\\['fine_label'\\]\\)"),
        ((Image.new("RGB", (8, 8)), 3), "to_tensor\\(item\\[0\\]\\)"),
        ((torch.zeros(3, 8, 8, dtype=torch.uint8), 3), "float tensor"),
        (image(), "not a Tensor"),
        ((image(), 3, "a", "b"), "tuple of 4"),
    ],
)
def test_other_items_are_refused_with_the_wrapper_to_write(item, shown):
    with pytest.raises(TypeError, match=shown) as caught:
        as_image_dataset(Own([item]))
    code = str(caught.value).split("wrap it:\n")[1]
    compile(code, "wrapper", "exec")


def test_items_that_cannot_be_read_are_left_out_wherever_they_are():
    wrapped = as_image_dataset(Own([None, (image(), 1), None, (image(1), 0, "b")]))
    assert wrapped[0] is None
    images, targets, ids = collate([wrapped[index] for index in range(4)])
    assert (len(images), targets.tolist(), ids) == (2, [1, 0], ["1", "b"])
    with pytest.raises(ValueError, match="none of the 2 images"):
        as_image_dataset(Own([None, None]))


def test_images_of_several_sizes_and_nan_pixels_are_named():
    wrapped = as_image_dataset(Own([(image(), 0), (image(size=9), 0, "odd")]))
    with pytest.raises(ValueError, match=r"\(3, 8, 8\) \('0'\) and \(3, 9, 9\) \('odd'\)"):
        collate([wrapped[0], wrapped[1]])
    broken = image()
    broken[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="image 'x' has NaN pixels"):
        collate([as_image_dataset(Own([(broken, 0, "x")]))[0]])


def test_the_stated_normalisation_is_checked_and_passed_on():
    said = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    wrapped = as_image_dataset(Own([((image() - 0.5) / 0.25, 0)], normalisation=said, groups=["p"]))
    assert wrapped[0][0].min() < 0
    assert (wrapped.normalisation.mean, wrapped.groups) == (said[0], ["p"])
    with pytest.raises(ValueError, match=r"image 'x' goes from .* once the data set's normalisation is undone"):
        as_image_dataset(Own([(255 * image(), 0, "x")], normalisation=said))


def test_groups_belong_to_images():
    dataset = ImageDataset("d", "test", ["a", "b"], [0, 1], image, ["x", "y"], UNIT, groups=["p", "q"])
    assert dataset.subset([1]).groups == ["q"]
    with pytest.raises(ValueError, match="1 groups for 2 images"):
        ImageDataset("d", "test", ["a", "b"], [0, 1], image, ["x", "y"], UNIT, groups=["p"])


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
