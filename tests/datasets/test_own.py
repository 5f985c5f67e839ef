"""A user's own data set: labels, items and pixels are taken as they are, or refused by name."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

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
