"""A data set with a fraction of each image's pixels replaced, as a net is retrained on it (see :mod:`idsds.protocols.roar`)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import v2

from idsds.common import paths
from idsds.common.files import read_json, write_json
from idsds.datasets.base import ImageDataset, fingerprint
from idsds.datasets.images import keyed
from idsds.protocols.roar import MASK, Shown, mask_images, replace_pixels
from idsds.studies.roar.pixel_ranks import PixelRanks

Fill = Literal["mean", "black"]


class _Replacing:
    """Reads the images of a data set with some of their pixels replaced; its ``read`` and ``augment`` serve as another data set's."""

    def __init__(self, dataset: ImageDataset, ranks: PixelRanks | None, share: float, kind: Shown, fill: Tensor) -> None:
        self.dataset, self.ranks, self.share, self.kind, self.fill = dataset, ranks, share, kind, fill

    def read(self, index: int) -> Tensor:
        """Float (3, H, W) in [0, 1]."""
        if self.kind == MASK:
            assert self.ranks is not None
            return mask_images(self.ranks[index][None], self.share)[0]
        image = self.dataset.read(index)
        if self.ranks is None:  # nothing is replaced, or everything
            return image if self.share < 0.5 else self.fill[:, None, None].expand_as(image)
        return replace_pixels(image[None], self.ranks[index][None], self.share, self.kind, self.fill)[0]

    def mirrored(self, index: int, generator: torch.Generator) -> Tensor:
        """Like ``read``, mirrored half the time. A random crop would change the size of the holes."""
        return keyed(v2.RandomHorizontalFlip(), self.read(index), generator)


def modified(
    dataset: ImageDataset, ranks: PixelRanks | None, share: float, kind: Shown, fill: Tensor, *, flip: bool = False
) -> ImageDataset:
    """A data set with a fraction of the pixels of each image replaced.

    Args:
        ranks: their pixels' ranks; None where nothing (``share`` 0) or everything (1) is replaced.
        share, kind: see :func:`idsds.protocols.roar.replacement_mask`; with ``mask`` only the mask of replaced pixels is shown
            (:func:`idsds.protocols.roar.mask_images`), which needs ``ranks``.
        fill: (3,), in [0, 1], what replaces a pixel.
        flip: whether training mirrors the modified images at random.
    """
    read = _Replacing(dataset, ranks, share, kind, fill)
    items = dataset.image_ids, dataset.targets, read.read
    augment = read.mirrored if flip else None
    return ImageDataset(dataset.name, dataset.split, *items, dataset.classes, dataset.normalisation, augment=augment)


def channel_means(dataset: ImageDataset) -> Tensor:
    """Return the mean of each channel over all pixels of all images, (3,), in [0, 1]."""
    sums = torch.zeros(3, dtype=torch.float64)
    for index in range(len(dataset)):
        sums += dataset.read(index).double().mean(dim=(1, 2))
    return (sums / len(dataset)).float()


def fill_colour(fill: Fill, train: ImageDataset) -> Tensor:
    """Return what replaces a pixel, (3,), in [0, 1]: the mean of each channel over the training images, or black.

    Decoding a large data set takes as long as an epoch of training, so the mean is cached.
    """
    if fill == "black":
        return torch.zeros(3)
    path = paths.cache() / "roar" / f"mean-{fingerprint(train)}.json"
    if not path.is_file():
        write_json(path, channel_means(train).tolist())
    return torch.tensor(read_json(path))
