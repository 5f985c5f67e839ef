"""Data sets: images with a target and a stable id, in one fixed order.

A loader handles files and pixels in [0, 1]. The normalisation comes from the model's entry or, for a net trained from scratch, from the
data set's own statistics.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from idsds.common.normalisation import Normalisation
from idsds.common.randomness import generator as keyed_generator
from idsds.common.registry import Registry, check_name, check_names
from idsds.datasets.parts import Parts

OnError = Literal["raise", "skip"]


class ImageReadError(RuntimeError):
    """An image that cannot be read; the message names the data set, the image and the reason."""


class ImageDataset(Dataset):
    """Items ``(image, target, image_id)``: float (3, H, W) normalised, int, str.

    Args:
        image_ids: one stable id per image.
        targets: one class index per image.
        read: maps an index to the image, float (3, H, W) in [0, 1]. Must be picklable, since loader processes may be spawned.
        normalisation: applied to the result of ``read``.
        augment: maps an index and a generator to a randomly augmented image for training, float (3, H, W) in [0, 1]; None for ``read``.
        on_error: treatment of unreadable images: ``raise`` raises :class:`ImageReadError`; ``skip`` returns None as the item, which
            :func:`collate` leaves out and :attr:`skipped` counts.
        groups: one label per image if images belong together, such as crops of a photo; intervals then resample groups.
    """

    #: The known parts of the images, set by the loader if they have any. ``augment`` may then return the image without some of them,
    #: and the probabilities (K,) of the classes that fit the others, which become its target.
    parts: Parts | None = None
    #: Size and crop, if they differ from the files'.
    view: tuple[Any, ...] | None = None

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
        groups: Sequence[str] | None = None,
    ) -> None:
        if len(image_ids) != len(targets):
            raise ValueError(f"{name}: {len(image_ids)} image ids for {len(targets)} targets")
        check_name(f"on_error of {name!r}", on_error, get_args(OnError))
        self.name, self.split, self.classes, self.normalisation = name, split, list(classes), normalisation
        self.image_ids, self.read = list(image_ids), read
        self.targets = [class_index(target, image_id) for target, image_id in zip(targets, image_ids, strict=True)]
        self.augment, self.on_error, self.groups = augment, on_error, groups and list(map(str, groups))
        if self.groups and len(self.groups) != len(self.image_ids):
            raise ValueError(f"{name}: {len(self.groups)} groups for {len(self.image_ids)} images")
        # In shared memory, so that the main process sees marks set by a loader's worker processes.
        self._unreadable = torch.zeros(len(self.image_ids), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        return self.item(index)

    def item(self, index: int, generator: torch.Generator | None = None) -> Any:
        """Return the item at ``index``, augmented with ``generator`` if given; None for an unreadable image if ``on_error="skip"``."""
        image = self.pixels(index, generator)
        if image is None:
            return None
        image, fitting = image if isinstance(image, tuple) else (image, None)
        target = self.targets[index] if fitting is None or self.parts is None else fitting
        return self.normalisation(image), target, self.image_ids[index]

    def pixels(self, index: int, generator: torch.Generator | None = None) -> Any:
        """Return the image of :meth:`item` before normalisation, float (3, H, W) in [0, 1], or None or a pair as ``item`` does."""
        try:
            return self.read(index) if generator is None or self.augment is None else self.augment(index, generator)
        except ImageReadError as error:
            if self.on_error == "raise":
                raise ImageReadError(f"{self.name}: image {self.image_ids[index]!r}: {error}") from error
            self._unreadable[index] = True
            return None

    def stamp(self, index: int) -> str:
        """Return what distinguishes versions of an image's file; empty for images that are not files."""
        stamp = self._of_file("stamp", index)
        return stamp() if stamp else ""

    def size(self, index: int) -> tuple[int, int]:
        """Return the height and width in pixels of an image's file before cropping, or of an image in memory."""
        size = self._of_file("file_size", index)
        height, width = size() if size else self.read(index).shape[-2:]
        return int(height), int(width)

    def _of_file(self, what: str, index: int) -> Callable[[], Any] | None:
        """Return a method of the reader of an image's file, for that image; None if the images are not files, or it lacks it."""
        read = self.read
        while isinstance(read, _Picked):
            read, index = read.function, read.indices[index]
        function = getattr(getattr(read, "__self__", None), what, None)
        return function and partial(function, index)

    def augmented(self, seed: int, epoch: int) -> AugmentedDataset:
        """Return the same images, augmented for one epoch of training."""
        return AugmentedDataset(self, seed, epoch)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def skipped(self) -> list[str]:
        """Ids of images skipped so far because they could not be read."""
        return [self.image_ids[i] for i in self._unreadable.nonzero().flatten().tolist()]

    def subset(self, indices: Sequence[int]) -> ImageDataset:
        """Return the images at ``indices``, in that order, as a data set."""
        found, indices = copy.copy(self), list(indices)
        found.image_ids, found.targets = [self.image_ids[i] for i in indices], [self.targets[i] for i in indices]
        found.groups = self.groups and [self.groups[i] for i in indices]
        found.read = _Picked(self.read, indices)
        found.augment = self.augment and _Picked(self.augment, indices)
        found._unreadable = torch.zeros(len(indices), dtype=torch.bool).share_memory_()
        return found


class _Picked:
    """``function`` applied through a list of indices; a class, because closures cannot be pickled."""

    def __init__(self, function: Callable[..., Tensor], indices: list[int]) -> None:
        self.function, self.indices = function, indices

    def __call__(self, index: int, *rest: torch.Generator) -> Tensor:
        return self.function(self.indices[index], *rest)


class AugmentedDataset(Dataset):
    """A data set augmented for one epoch of training, keyed by (seed, epoch, image id).

    Augmentation does not depend on the order, the number of loader processes or devices, or on resuming.
    """

    def __init__(self, dataset: ImageDataset, seed: int, epoch: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        return self.dataset.item(index, keyed_generator(self.seed, "augmentation", self.epoch, self.dataset.image_ids[index]))


def hashed(text: str) -> bytes:
    """Return a stable hash, which determines orders and splits."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def fixed_order(image_ids: Sequence[str]) -> list[int]:
    """Return the fixed order in which a data set is evaluated: by the hash of the image id.

    It mixes the classes, is the same for every model, method and seed, and adding images keeps the order of the others.
    """
    return sorted(range(len(image_ids)), key=lambda index: (hashed(image_ids[index]), image_ids[index]))


def fingerprint(dataset: ImageDataset) -> str:
    """Return a hash of name, split, ids, targets, normalisation and crop: everything a result depends on, apart from the files."""
    parts = (dataset.name, dataset.split, dataset.image_ids, dataset.targets, dataset.normalisation)
    parts += () if dataset.view is None else (dataset.view,)  # type: ignore[assignment]
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class DatasetEntry:
    """One data set in the registry.

    Args:
        load: ``load(split, normalisation, **options)`` returns an :class:`ImageDataset`.
        num_classes: K; None if the folder determines it.
        image_size: pixels per side of a model's input.
        normalisation: the data set's own statistics, for nets trained from scratch on it.
        embedded: whether the pixels come with the installation.
        distill: whether nets are fine-tuned in-domain without labels, because there are too few labelled images.
        training: changes to the recipe of small nets trained from scratch on it.
    """

    name: str
    load: Callable[..., ImageDataset]
    num_classes: int | None
    image_size: int
    normalisation: Normalisation
    embedded: bool = False
    distill: bool = False
    source: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> list[str]:
        """The keyword options that :func:`create_dataset` takes for this data set."""
        return [name for name in inspect.signature(self.load).parameters if name not in ("split", "normalisation")]


DATASETS: Registry[DatasetEntry] = Registry("data set")
SPLITS = ("train", "val", "test")


def register_dataset(name: str | None = None, *, replace: bool = False, **entry: Any) -> Callable[[Callable], Callable]:
    """Register the decorated loader under ``name`` or its own name. Other arguments: see :class:`DatasetEntry`."""

    return DATASETS.registering(partial(DatasetEntry, **entry), name, replace)


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
        normalisation: the model's normalisation; None for the data set's own statistics.
        manifest: a file from :func:`idsds.datasets.write_manifest`; the data set then holds only its images, in its order.
        options: further options of the loader, such as ``root``.

    Raises:
        UnknownNameError: for an unknown data set, split or option, with the nearest match.
        FileNotFoundError: if the images are missing; the message names the folder and the files it should hold.
    """
    entry = DATASETS[name]
    check_name(f"split of {name!r}", split, SPLITS)
    check_names(f"option of data set {name!r}", options, entry.options)
    dataset = entry.load(split, normalisation or entry.normalisation, **options)
    if manifest is None:
        return dataset
    from idsds.datasets.manifest import select

    return select(dataset, manifest)


def class_index(label: object, image_id: str) -> int:
    """Return a label as an integer. Raises TypeError, which names the image, for anything but an integer class."""
    if isinstance(label, (Tensor, np.ndarray)) and tuple(label.shape) in ((), (1,)):  # MedMNIST's labels are arrays of one integer
        label = label.item()
    if isinstance(label, numbers.Integral) and not isinstance(label, (bool, np.bool_)):
        return int(label)
    if isinstance(label, (Tensor, np.ndarray, list, tuple)):
        what = f"{type(label).__name__} of shape {np.shape(label)}; of one-hot or soft labels pass the index of the class, such as argmax()"
    else:
        what = f"{label!r}"
    raise TypeError(f"the label of image {image_id!r} must be an integer class, not {what}; target='prediction' needs no labels")


def collate(items: Sequence[tuple[Tensor, int, str] | None]) -> tuple[Tensor, Tensor, list[str]]:
    """Collate items into a batch: images (B, 3, H, W), targets (B,) or probabilities of classes (B, K), image ids.

    Unreadable images are left out; if none remains, the batch is (0, 3, 1, 1), (0,), [].
    """
    kept = [item for item in items if item is not None]
    if not kept:
        return torch.empty(0, 3, 1, 1), torch.empty(0, dtype=torch.long), []
    images, targets, image_ids = zip(*kept, strict=True)
    for image, image_id in zip(images, image_ids, strict=True):
        if image.shape != images[0].shape:
            shapes = f"{tuple(images[0].shape)} ({image_ids[0]!r}) and {tuple(image.shape)} ({image_id!r})"
            raise ValueError(f"images of one data set must be of one size, not {shapes}: resize and crop them in the data set")
        if image.isnan().any():
            raise ValueError(f"image {image_id!r} has NaN pixels")
    labels = torch.stack(targets) if isinstance(targets[0], Tensor) else torch.tensor(targets)
    return torch.stack(images), labels, list(image_ids)


def first(dataset: ImageDataset, images: int) -> ImageDataset:
    """Return the first ``images`` images in the fixed order, or all of them if there are fewer."""
    return dataset.subset(fixed_order(dataset.image_ids)[:images])
