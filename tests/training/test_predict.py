"""Accuracy: of images that can be read, and of images with a hole."""

import pytest
import torch

from idsds.common.normalisation import UNIT
from idsds.datasets.base import ImageDataset, ImageReadError
from idsds.datasets.images import TensorImages
from idsds.training.predict import accuracy
from idsds.training.recipes import Deletion
from idsds.training.steps import loader_of
from tests.training.nets import Tiny, toy


def test_skipped_images_are_left_out_of_the_means():
    def read(index):
        if index % 2:
            raise ImageReadError("gone")
        return TensorImages(torch.full((1, 3, 8, 8), 0.5)).read(0)

    data = ImageDataset("x", "val", ["a", "b", "c", "d"], [0, 1, 2, 0], read, list("rgb"), UNIT, on_error="skip")
    share, _, _ = accuracy(model := Tiny(), loader_of(data, [[0, 1], [1, 3], [2]]))
    right = model(torch.full((1, 3, 8, 8), 0.5)).argmax().item()
    assert share == ((right == 0) + (right == 2)) / 2
    with pytest.raises(ImageReadError, match="none of the images"):
        accuracy(Tiny(), loader_of(data, [[1, 3]]))


def test_accuracy_on_deleted_images_is_that_of_images_with_a_hole():
    data = toy(64, augment=False)
    seen = []

    class Watching(Tiny):
        def forward(self, x):
            seen.append(x.clone())
            return super().forward(x)

    loader = loader_of(data, [range(32), range(32, 64)])
    accuracy(model := Watching(), loader, Deletion(grid=4))
    first = torch.cat(seen)
    holes = (first == 0).all(1).unflatten(1, (4, 2)).unflatten(3, (4, 2)).all(4).all(2).flatten(1)  # (64, 16)
    assert (holes.sum(1) == 1).all()
    assert len(set(holes.int().argmax(1).tolist())) > 8
    accuracy(model, loader, Deletion(grid=4))
    assert torch.equal(torch.cat(seen[2:]), first)
