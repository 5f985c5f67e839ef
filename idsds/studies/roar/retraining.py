"""One net of :mod:`idsds.studies.roar.study`: trained from scratch on modified images, and tested on images modified in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from idsds.common import paths
from idsds.common.devices import Device, Precision, chosen_device
from idsds.common.files import read_json, write_json
from idsds.common.hashing import code_digest, digest, versions
from idsds.datasets.base import ImageDataset, fingerprint
from idsds.datasets.images import keyed
from idsds.protocols.roar import MASK, Shown, mask_images, replace_pixels, replaced_pixels
from idsds.studies.roar.pixel_ranks import PixelRanks
from idsds.training.checkpoints import Stage
from idsds.training.launch import Machine, is_main
from idsds.training.loop import Plan, fit
from idsds.training.predict import predicted

Fill = Literal["mean", "black"]
#: Of each image in order: ``predicted``, the most probable class, and ``top5``, whether the target is among the five; None if unreadable.
Predictions = dict[str, list[int | None]]


@dataclass(frozen=True)
class Retraining:
    """One net, trained from scratch on modified images and tested on images modified in the same way.

    Args:
        kind: ``remove`` (ROAR), ``keep`` (KAR), or ``mask``: only the mask of the pixels that ``remove`` replaces.
        data: the three splits, as they are, and their ``fingerprints``.
        ranks: the ranks of their pixels; None where nothing or everything is replaced.
        flip: whether training mirrors images.
    """

    method: str
    kind: Shown
    share: float
    seed: int
    stage: Stage
    data: dict[str, ImageDataset]
    fingerprints: dict[str, str]
    ranks: dict[str, PixelRanks] | None
    fill: Fill
    flip: bool

    @cached_property
    def key(self) -> str:
        """The address of the result, the same for all methods where nothing or everything is replaced."""
        done: Any = "nothing"
        if self.pixels:
            done = {"pixels": self.pixels, "fill": None if self.kind == MASK else self.fill}
        if self.ranks is not None:
            done |= {"kind": self.kind, "ranks": {split: found.key for split, found in self.ranks.items()}}
        content = {"trained": self.stage.key, "replaced": done, "flip": self.flip, "kept": "predictions, top 5"}
        return digest({**content, "data": self.fingerprints, "code": code_digest(mask_images if self.kind == MASK else replace_pixels)})

    @property
    def pixels(self) -> int:
        """The number of replaced pixels per image."""
        height, width = self.data["test"][0][0].shape[-2:]
        return replaced_pixels(self.share, height * width)

    @property
    def path(self) -> Path:
        """The file of the result."""
        return paths.cache() / "roar" / f"{paths.portable(self.stage.model)}-{self.key}.json"

    def split(self, split: str) -> ImageDataset:
        """Return one split as the net sees it."""
        ranks = None if self.ranks is None else self.ranks[split]
        colour = torch.zeros(3) if self.kind == MASK else fill_colour(self.fill, self.data["train"])
        return modified(self.data[split], ranks, self.share, self.kind, colour, flip=self.flip and split == "train")

    def result(self, device: Device, precision: Precision, machine: Machine, progress: bool = True) -> dict[str, Any]:
        """Return :data:`Predictions` for the modified test images and ``train_accuracy``, from the cache or by training."""
        if self.path.is_file():
            return read_json(self.path)
        model, resume = self.stage.begin(), self.path.with_suffix(".resume.pt")
        data, label = (self.split("train"), self.split("val")), f"{self.method}, {self.kind}, {self.share:.0%}"
        machine = replace(machine, device=device, precision=precision)
        results = fit(model, Plan(*data, self.stage.recipe, None, self.seed, machine, resume, label, progress))
        model.to(chosen_device(device))
        found = predictions(model, self.split("test"), self.stage.recipe.batch_size, machine.workers, precision)
        result = {**found, "train_accuracy": results[-1].train_accuracy}
        if is_main():
            facts = {"method": self.method, "kind": self.kind, "share": self.share, "seed": self.seed, "versions": versions()}
            write_json(self.path, {**result, **facts, "epochs": [asdict(epoch) for epoch in results]})
            resume.unlink(missing_ok=True)
        return result


def predictions(model: nn.Module, data: ImageDataset, size: int, workers: int = 0, precision: Precision = "32-true") -> Predictions:
    """Return a net's predictions for a data set, see :func:`idsds.training.predict.predicted`."""
    found = predicted(model, data, size=size, workers=workers, precision=precision).set_index("image_id")
    columns = {"predicted": found["prediction"].tolist(), "top5": found["top5"].astype(int).tolist()}
    known = {name: dict(zip(found.index, values, strict=True)) for name, values in columns.items()}
    return {name: [values.get(image_id) for image_id in data.image_ids] for name, values in known.items()}


def compared(predicted: Sequence[int | None], wanted: Sequence[int | None]) -> tuple[int, int]:
    """Return how many images have the same class in both, and how many have a class in both."""
    pairs = [(ours, theirs) for ours, theirs in zip(predicted, wanted, strict=True) if ours is not None and theirs is not None]
    return sum(ours == theirs for ours, theirs in pairs), len(pairs)


def _read(dataset: ImageDataset, ranks: PixelRanks | None, share: float, kind: Shown, fill: Tensor, index: int) -> Tensor:
    """Return an image with some of its pixels replaced, float (3, H, W) in [0, 1]."""
    if kind == MASK:
        assert ranks is not None
        return mask_images(ranks[index][None], share)[0]
    image = dataset.read(index)
    if ranks is None:  # nothing is replaced, or everything
        return image if share < 0.5 else fill[:, None, None].expand_as(image)
    return replace_pixels(image[None], ranks[index][None], share, kind, fill)[0]


def _mirrored(read: Callable[[int], Tensor], index: int, generator: torch.Generator) -> Tensor:
    """Return an image, mirrored half the time. A random crop would change the size of the holes."""
    return keyed(v2.RandomHorizontalFlip(), read(index), generator)


def modified(
    dataset: ImageDataset, ranks: PixelRanks | None, share: float, kind: Shown, fill: Tensor, *, flip: bool = False
) -> ImageDataset:
    """A data set with a fraction of the pixels of each image replaced.

    Args:
        share, kind: see :func:`idsds.protocols.roar.replacement_mask`; with ``mask`` only the mask of replaced pixels is shown
            (:func:`idsds.protocols.roar.mask_images`), which needs ``ranks``.
        fill: (3,), in [0, 1], what replaces a pixel.
    """
    read = partial(_read, dataset, ranks, share, kind, fill)
    items = dataset.image_ids, dataset.targets, read
    augment = partial(_mirrored, read) if flip else None
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
