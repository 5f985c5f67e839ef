"""Data sets: images with a target and a stable id, in one fixed order.

A loader deals with files and pixels in [0, 1]; the normalisation comes from the model's entry (or, for a net trained from scratch, from
the data set's own statistics), never from a model's name.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from idsds.common.normalisation import Normalisation
from idsds.common.randomness import generator as keyed_generator
from idsds.common.registry import Registry, UnknownNameError

OnError = Literal["raise", "skip"]
ON_ERROR = ("raise", "skip")


class ImageReadError(RuntimeError):
    """An image that cannot be read; the message names the data set, the image and the reason."""


class ImageDataset(Dataset):
    """Items ``(image, target, image_id)``: float (3, H, W) normalised, int, str.

    Args:
        name: the data set's name.
        split: ``train``, ``val`` or ``test``.
        image_ids: one stable id per image.
        targets: one class index per image.
        read: from an index to the image, float (3, H, W) in [0, 1]. It must be picklable, since loader processes may be spawned.
        classes: names of the classes, in the order of their indices.
        normalisation: applied to the result of ``read``.
        augment: from an index and a generator to a randomly changed image for training, float (3, H, W) in [0, 1]; None: ``read``.
        on_error: treatment of unreadable images: ``raise`` stops with an :class:`ImageReadError`, ``skip`` returns None as the item, which
            :func:`collate` leaves out, and counts it in :attr:`skipped`.
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
        augment: Callable[[int, torch.Generator], Tensor] | None = None,
        on_error: OnError = "raise",
    ) -> None:
        if len(image_ids) != len(targets):
            raise ValueError(f"{name}: {len(image_ids)} image ids for {len(targets)} targets")
        if on_error not in ON_ERROR:
            raise UnknownNameError(f"on_error of {name!r}", on_error, ON_ERROR)
        self.name, self.split, self.classes, self.normalisation = name, split, list(classes), normalisation
        self.image_ids, self.targets, self.read = list(image_ids), [int(t) for t in targets], read
        self.augment, self.on_error = augment, on_error
        # In shared memory, so that marks set by a loader's worker processes are seen by the process that counts.
        self._unreadable = torch.zeros(len(self.image_ids), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        return self.item(index)

    def item(self, index: int, generator: torch.Generator | None = None) -> Any:
        """Return the item at ``index``, augmented by ``generator`` if given; None for an unreadable image if ``on_error="skip"``."""
        try:
            image = self.read(index) if generator is None or self.augment is None else self.augment(index, generator)
        except ImageReadError as error:
            if self.on_error == "raise":
                raise ImageReadError(f"{self.name}: image {self.image_ids[index]!r}: {error}") from error
            self._unreadable[index] = True
            return None
        return self.normalisation(image), self.targets[index], self.image_ids[index]

    def augmented(self, seed: int, epoch: int) -> AugmentedDataset:
        """Return the same images as training sees them in one epoch."""
        return AugmentedDataset(self, seed, epoch)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def skipped(self) -> list[str]:
        """Ids of the images that could not be read so far and were skipped."""
        return [self.image_ids[i] for i in self._unreadable.nonzero().flatten().tolist()]

    def subset(self, indices: Sequence[int]) -> ImageDataset:
        """Return the images at ``indices``, in that order, as a data set."""
        indices = list(indices)
        return ImageDataset(
            self.name,
            self.split,
            image_ids=[self.image_ids[i] for i in indices],
            targets=[self.targets[i] for i in indices],
            read=_Picked(self.read, indices),
            classes=self.classes,
            normalisation=self.normalisation,
            augment=None if self.augment is None else _Picked(self.augment, indices),
            on_error=self.on_error,
        )


class _Picked:
    """``function`` applied through a list of indices; a class, because a closure cannot be pickled."""

    def __init__(self, function: Callable[..., Tensor], indices: list[int]) -> None:
        self.function, self.indices = function, indices

    def __call__(self, index: int, *rest: torch.Generator) -> Tensor:
        return self.function(self.indices[index], *rest)


class AugmentedDataset(Dataset):
    """A data set as training sees it in one epoch: each image changed at random, keyed by (seed, epoch, image id).

    The stream does not depend on the order, on the number of loader processes or devices, or on a resume.
    """

    def __init__(self, dataset: ImageDataset, seed: int, epoch: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        return self.dataset.item(index, keyed_generator(self.seed, "augmentation", self.epoch, self.dataset.image_ids[index]))


def hashed(text: str) -> bytes:
    """Return a stable hash, from which orders and splits are made."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def fixed_order(image_ids: Sequence[str]) -> list[int]:
    """Return the one order in which a data set is evaluated: by the hash of the image id.

    It mixes the classes, is the same for every model, method and seed, and keeps the order of the other images when some are added.
    """
    return sorted(range(len(image_ids)), key=lambda index: (hashed(image_ids[index]), image_ids[index]))


def fingerprint(dataset: ImageDataset) -> str:
    """Return a hash of name, split, ids, targets and normalisation: everything a result depends on, apart from the pixels."""
    parts = (dataset.name, dataset.split, dataset.image_ids, dataset.targets, dataset.normalisation)
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class DatasetEntry:
    """One data set of the registry.

    Args:
        name: the key.
        load: ``load(split, normalisation, **options)`` returns an :class:`ImageDataset`.
        num_classes: K; None if the folder decides.
        image_size: pixels per side that a model sees.
        normalisation: the data set's own statistics, for nets trained from scratch on it.
        embedded: whether the pixels come with the installation.
        distill: whether nets are fine-tuned in-domain without its labels, since there are too few labelled images.
        source: where it comes from.
    """

    name: str
    load: Callable[..., ImageDataset]
    num_classes: int | None
    image_size: int
    normalisation: Normalisation
    embedded: bool = False
    distill: bool = False
    source: str = ""

    @property
    def options(self) -> list[str]:
        """The keyword options that :func:`create_dataset` takes for this data set."""
        return [name for name in inspect.signature(self.load).parameters if name not in ("split", "normalisation")]


DATASETS: Registry[DatasetEntry] = Registry("data set")
SPLITS = ("train", "val", "test")


def register_dataset(name: str | None = None, *, replace: bool = False, **entry: Any) -> Callable[[Callable], Callable]:
    """Register the decorated loader under ``name`` or its own name; the other arguments are those of :class:`DatasetEntry`."""

    def decorate(load: Callable) -> Callable:
        key = name or load.__name__
        DATASETS.add(key, DatasetEntry(name=key, load=load, **entry), replace=replace)
        return load

    return decorate


def list_datasets() -> list[str]:
    """Return the names of all data sets, for :func:`create_dataset`."""
    return list(DATASETS)


def create_dataset(
    name: str,
    split: str = "test",
    normalisation: Normalisation | None = None,
    manifest: str | os.PathLike[str] | None = None,
    **options: Any,
) -> ImageDataset:
    """Load one split.

    Args:
        name: one of :func:`list_datasets`.
        split: ``train``, ``val`` or ``test``.
        normalisation: that of the model; None: the data set's own statistics.
        manifest: a file from :func:`idsds.datasets.write_manifest`; the data set then holds only its images, in its order.
        options: further options of the loader, such as ``root``.

    Raises:
        UnknownNameError: for an unknown data set, split or option, naming the nearest.
        FileNotFoundError: if the images are not on this disk, naming the folder and the files it should hold.
    """
    entry = DATASETS[name]
    if split not in SPLITS:
        raise UnknownNameError(f"split of {name!r}", split, SPLITS)
    for option in options:
        if option not in entry.options:
            raise UnknownNameError(f"option of data set {name!r}", option, entry.options)
    dataset = entry.load(split, normalisation or entry.normalisation, **options)
    if manifest is None:
        return dataset
    from idsds.datasets.manifest import select

    return select(dataset, manifest)


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


def collate(items: Sequence[tuple[Tensor, int, str] | None]) -> tuple[Tensor, Tensor, list[str]]:
    """Collate items into a batch: images (B, 3, H, W), targets (B,), image ids.

    Images that were skipped as unreadable are left out; if none remains, the batch is (0, 3, 1, 1), (0,), [].
    """
    kept = [item for item in items if item is not None]
    if not kept:
        return torch.empty(0, 3, 1, 1), torch.empty(0, dtype=torch.long), []
    images, targets, image_ids = zip(*kept, strict=True)
    return torch.stack(images), torch.tensor(targets), list(image_ids)


def first(dataset: ImageDataset, images: int) -> ImageDataset:
    """Return the first ``images`` images in the fixed order, or all of them if there are fewer."""
    return dataset.subset(fixed_order(dataset.image_ids)[:images])
