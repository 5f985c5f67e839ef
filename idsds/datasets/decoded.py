"""A run's images, decoded once each: prefetched by other processes, and kept for further models while memory allows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from idsds.common.numbers import gigabytes
from idsds.datasets.base import ImageDataset, collate

#: Environment variable: gigabytes of decoded images to keep, by default a quarter of the free memory; 0 for none.
SETTING = "IDSDS_IMAGES_GB"
Item = tuple[Tensor, int, str]
Images = tuple[Tensor, Tensor, list[str]]


def room() -> int:
    """Return how many bytes of decoded images may be kept. Raises ValueError if the setting is not a number of gigabytes."""
    if (limit := gigabytes(SETTING, zero=True)) is not None:
        return limit
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, ValueError, OSError):  # Windows, and systems that do not report it
        return 2 * 2**30


class Decoded(Dataset):
    """A data set that keeps decoded images while memory allows; further images are decoded again at every access.

    Args:
        dataset: yields items (image, target, image_id), or None for an unreadable image.
        keep: bytes of images to keep; None for :func:`room`.
    """

    def __init__(self, dataset: Dataset, keep: int | None = None) -> None:
        self.dataset, self._left = dataset, [room() if keep is None else keep]  # in a list, which copies share
        self._read = _Reader(dataset)
        self._kept: dict[int, Item | None] = {}

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def of(self, dataset: Dataset) -> Decoded:
        """Return the same images with the normalisation of ``dataset``; both share the decoded images."""
        other = Decoded.__new__(Decoded)
        other.__dict__ = {**self.__dict__, "dataset": dataset}
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_left": [0]}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: int) -> Item | None:
        images, targets, image_ids = next(self.batches([[index]]))
        return (images[0], int(targets[0]), image_ids[0]) if image_ids else None

    def batches(self, chosen: Iterable[Sequence[int]], workers: int = 0, pin: bool = False) -> Iterator[Images]:
        """Yield a batch for each group of indices: images (B, 3, H, W), targets (B,), image ids; see :func:`collate`.

        Args:
            workers: prefetching processes; 0 loads in this process on request. The batches are the same.
            pin: whether to use pinned memory, from which a GPU copies while computing.
        """
        groups = [list(group) for group in chosen]
        lacking = [[index for index in group if index not in self._kept] for group in groups]
        ahead = self._ahead([group for group in lacking if group], workers) if workers else None
        for group, missing in zip(groups, lacking, strict=True):
            items = _separate(*next(ahead)) if ahead is not None and missing else [self._read[index] for index in missing]
            new = dict(zip(missing, items, strict=True))
            for index, item in new.items():
                self._keep(index, item)
            packed = [new[index] if index in new else self._kept[index] for index in group]
            if len({item[0].dtype for item in packed if item is not None}) > 1:
                packed = [item and (_unpacked(item[0]), *item[1:]) for item in packed]
            images, targets, image_ids = collate(packed)
            images = _unpacked(images)
            if image_ids and isinstance(self.dataset, ImageDataset):
                images = self.dataset.normalisation(images)
            yield images.pin_memory() if pin else images, targets, image_ids

    def _ahead(self, lacking: list[list[int]], workers: int) -> Iterator[tuple[Any, list[Any]]]:
        # With its own generator, since the loader would otherwise draw a seed from torch's global one.
        return iter(DataLoader(self._read, batch_sampler=lacking, collate_fn=_together, num_workers=workers, generator=torch.Generator()))

    def _keep(self, index: int, item: Item | None) -> None:
        size = 0 if item is None else item[0].numel() * item[0].element_size()
        if size <= self._left[0]:
            # What a worker sent is a part of shared memory, of which there is little, and which takes a file descriptor.
            self._kept[index] = item and (item[0].clone() if item[0].is_shared() else item[0], *item[1:])
            self._left[0] -= size


class _Reader(Dataset):
    """Items as they are kept: packed and, for the package's data sets, before the normalisation, which depends on the model."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item | None:
        if isinstance(self.dataset, ImageDataset):
            image = self.dataset.pixels(index)
            return None if image is None else (_packed(image), self.dataset.targets[index], self.dataset.image_ids[index])
        item = self.dataset[index]
        return item and (_packed(item[0]), *item[1:])


def _together(items: list[Item | None]) -> tuple[Tensor | list[Tensor], list[tuple[Any, ...] | None]]:
    """Return a worker's items as one tensor of images, which is one transfer, and the rest of each; a list if their sizes differ."""
    images = [item[0] for item in items if item is not None]
    same = len({(image.shape, image.dtype) for image in images}) == 1
    return torch.stack(images) if same else images, [item and item[1:] for item in items]


def _separate(images: Tensor | list[Tensor], others: list[tuple[Any, ...] | None]) -> list[Item | None]:
    """Invert :func:`_together`."""
    every = iter(images)
    return [other and (next(every), *other) for other in others]


def _packed(image: Tensor) -> Tensor:
    """Return an image as bytes if all its values are multiples of 1 / 255, which is lossless; any other image unchanged."""
    if image.dtype != torch.float32:
        return image
    small = (image * 255).round_().clamp_(0, 255).to(torch.uint8)
    return small if torch.equal(_unpacked(small), image) else image


def _unpacked(image: Tensor) -> Tensor:
    return image.float().div_(255) if image.dtype == torch.uint8 else image
