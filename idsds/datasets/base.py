"""What a data set is: images with a target and a stable id, in one fixed order.

A loader knows files and pixels in [0, 1]; the normalisation comes from the model's entry (or, for a net trained from scratch, from the
data set's own statistics), never from a model's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from idsds.models.base import Normalisation
from idsds.registry import Registry, UnknownNameError


class ImageDataset(Dataset):
    """Items ``(image, target, image_id)``: float (3, H, W) normalised, int, str.

    Args:
        name: the data set's name.
        split: ``train``, ``val`` or ``test``.
        image_ids: one stable id per image.
        targets: one class index per image.
        read: from an index to the image, float (3, H, W) in [0, 1].
        classes: names of the classes, in the order of their indices.
        normalisation: applied to what ``read`` gives.
    """

    def __init__(
        self,
        name: str,
        split: str,
        image_ids: Sequence[str],
        targets: Sequence[int],
        read: Callable[[int], Tensor],
        classes: Sequence[str],
        normalisation: Normalisation,
    ) -> None:
        if len(image_ids) != len(targets):
            raise ValueError(f"{name}: {len(image_ids)} image ids for {len(targets)} targets")
        self.name, self.split, self.classes, self.normalisation = name, split, list(classes), normalisation
        self.image_ids, self.targets, self.read = list(image_ids), [int(t) for t in targets], read

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        return self.normalisation(self.read(index)), self.targets[index], self.image_ids[index]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)


def hashed(text: str) -> bytes:
    """A stable hash, by which orders and splits are made."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def fixed_order(image_ids: Sequence[str]) -> list[int]:
    """The one order in which a data set is evaluated: by the hash of the image id.

    It mixes the classes, is the same for every model, method and seed, and does not change for the other images when some are added.
    """
    return sorted(range(len(image_ids)), key=lambda index: (hashed(image_ids[index]), image_ids[index]))


def fingerprint(dataset: ImageDataset) -> str:
    """A hash of name, split, ids, targets and normalisation: what a result depends on, apart from the pixels themselves."""
    parts = (dataset.name, dataset.split, dataset.image_ids, dataset.targets, dataset.normalisation)
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class DatasetEntry:
    """One data set of the registry.

    Args:
        name: the key.
        load: ``load(split, normalisation, **options)`` gives an :class:`ImageDataset`.
        num_classes: K, None where the folder decides.
        image_size: pixels of a side that a model sees.
        normalisation: the data set's own statistics, for nets trained from scratch on it.
        embedded: whether the pixels come with the installation.
        source: where it comes from.
    """

    name: str
    load: Callable[..., ImageDataset]
    num_classes: int | None
    image_size: int
    normalisation: Normalisation
    embedded: bool = False
    source: str = ""


DATASETS: Registry[DatasetEntry] = Registry("data set")
SPLITS = ("train", "val", "test")


def register_dataset(name: str | None = None, *, replace: bool = False, **entry: Any) -> Callable[[Callable], Callable]:
    """Enter the decorated loader under ``name`` or its own name; the other arguments are those of :class:`DatasetEntry`."""

    def decorate(load: Callable) -> Callable:
        key = name or load.__name__
        DATASETS.add(key, DatasetEntry(name=key, load=load, **entry), replace=replace)
        return load

    return decorate


def list_datasets() -> list[str]:
    """Names of all data sets, for :func:`create_dataset`."""
    return list(DATASETS)


def create_dataset(name: str, split: str = "test", normalisation: Normalisation | None = None, **options: Any) -> ImageDataset:
    """Load one split.

    Args:
        name: one of :func:`list_datasets`.
        split: ``train``, ``val`` or ``test``.
        normalisation: what the model wants; None: the data set's own statistics.
        options: what the loader takes beyond that, such as ``root``.

    Raises:
        UnknownNameError: for an unknown data set or split, naming the nearest.
    """
    entry = DATASETS[name]
    if split not in SPLITS:
        raise UnknownNameError(f"split of {name!r}", split, SPLITS)
    return entry.load(split, normalisation or entry.normalisation, **options)


def as_image_dataset(dataset: object, name: str = "own") -> Dataset:
    """A data set of items ``(image, target)`` or ``(image, target, image_id)`` as one whose items have all three.

    Raises:
        TypeError, ValueError: naming what the first item is instead.
    """
    if isinstance(dataset, ImageDataset):
        return dataset
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(f"dataset must be a name or a data set with __len__ and __getitem__, not {type(dataset).__name__}")
    if not len(dataset):
        raise ValueError("the data set is empty")
    first = dataset[0]
    if not isinstance(first, (tuple, list)) or len(first) not in (2, 3):
        raise TypeError(f"an item must be (image, target) or (image, target, image_id), not {type(first).__name__}")
    image = first[0]
    if not isinstance(image, Tensor) or image.ndim != 3 or not image.is_floating_point():
        given = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"an image must be a float tensor (C, H, W), not {given}")
    return _WithIds(dataset, name)


class _WithIds(Dataset):
    """A user's data set; an item without an id gets its index."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name, self.split = dataset, name, "test"

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        image, target, *rest = self.dataset[index]
        return image, int(target), str(rest[0] if rest else index)


def collate(items: Sequence[tuple[Tensor, int, str]]) -> tuple[Tensor, Tensor, list[str]]:
    """Items to a batch: images (B, 3, H, W), targets (B,), image ids."""
    images, targets, image_ids = zip(*items, strict=True)
    return torch.stack(images), torch.tensor(targets), list(image_ids)
