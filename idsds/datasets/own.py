"""A user's own data set, checked and wrapped so that every item is an image, a target and an id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from idsds.common.normalisation import Normalisation, as_normalisation
from idsds.datasets.base import ImageDataset, class_index

# Rounding error of float16 images.
RANGE_TOLERANCE = 1e-2
#: Number of further looks at the first image; a random flip is seen with a probability of 1 - 0.5 ** AGAIN.
AGAIN = 5
#: The target of an image without a label.
UNLABELLED = -1


WRAPPER = """class Wrapped(torch.utils.data.Dataset):
    def __len__(self): return len(data)
    def __getitem__(self, index):
        item = data[index]
        return {image}, {label}"""


def as_image_dataset(dataset: object, name: str = "own", labels: bool = True, normalisation: Any = None, fixed: bool = False) -> Dataset:
    """Wrap a data set of items ``(image, target)`` or ``(image, target, image_id)`` as one whose items have all three fields.

    Args:
        dataset: the user's data set. Its attribute ``normalisation``, a :class:`Normalisation` or (mean, std), says how its pixels were
            normalised; its attribute ``groups``, one label per image, says which images belong together.
        labels: whether to read labels; otherwise every target is :data:`UNLABELLED`.
        normalisation: replaces the attribute.
        fixed: whether the images must be the same at every access.

    Raises:
        TypeError, ValueError: if items have another form; the message says which, and shows a wrapper to write.
    """
    if isinstance(dataset, ImageDataset):
        if normalisation is not None:
            raise ValueError(f"normalisation={normalisation!r} contradicts the data set {dataset.name!r}, which has one of its own")
        return dataset
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(f"dataset must be a name or a data set with __len__ and __getitem__, not {type(dataset).__name__}")
    if not len(dataset):
        raise ValueError("the data set is empty")
    wrapped = _WithIds(dataset, name, labels, as_normalisation(normalisation))
    for index in range(len(dataset)):
        if (first := wrapped[index]) is not None:  # the first readable item represents all
            if fixed:
                wrapped.check_fixed(index, first[0])
            return wrapped
    raise ValueError(f"none of the {len(dataset)} images of the data set can be read: every item is None")


def _wrapper(item: Any) -> str:
    """Return advice on wrapping a data set with such an item."""
    if isinstance(item, Mapping):
        keys = list(map(str, item))
        image = next((key for key in keys if key in ("image", "img", "pixel_values", "images")), keys[0] if keys else "image")
        label = next((key for key in keys if key in ("label", "labels", "target", "fine_label")), keys[-1] if keys else "label")
        code = WRAPPER.format(image=f"to_tensor(item[{image!r}])", label=f"int(item[{label!r}])")
    else:
        code = WRAPPER.format(image="to_tensor(item[0])", label="int(item[1])")
    return f"; with data your data set and to_tensor what turns an image into a float tensor (3, H, W), wrap it:\n{code}"


class _WithIds(Dataset):
    """A user's data set; items without an id get their index, items that are None stay None."""

    def __init__(self, dataset: Any, name: str, labels: bool, normalisation: Normalisation | None = None) -> None:
        self.dataset, self.name, self.split, self.labels = dataset, name, "test", labels
        self.normalisation = normalisation or as_normalisation(getattr(dataset, "normalisation", None))
        self.groups = getattr(dataset, "groups", None)
        self.first: tuple[torch.Size, str] | None = None
        if self.groups is not None and len(self.groups) != len(dataset):
            raise ValueError(f"the data set has {len(self.groups)} groups for {len(dataset)} images")

    def __len__(self) -> int:
        return len(self.dataset)

    def check_fixed(self, index: int, image: Tensor) -> None:
        """Raise ValueError if a few further looks give another image, as random augmentations do."""
        for _ in range(AGAIN):
            if (again := self[index]) is None or not torch.equal(again[0], image):
                raise ValueError(
                    f"image {index} of the data set is another one at every access: leave out random augmentations, since the scores of "
                    "all models and methods must be those of the same image"
                )

    def __getitem__(self, index: int) -> tuple[Tensor, int, str] | None:
        item = self.dataset[index]
        if item is None:
            return None
        if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
            given = f"{type(item).__name__} of {len(item)}" if isinstance(item, (tuple, list)) else type(item).__name__
            raise TypeError(f"an item must be (image, target) or (image, target, image_id), not a {given}{_wrapper(item)}")
        image, label, *rest = item
        image_id = str(rest[0] if rest else index)
        self._check(image, image_id, item)
        # A copy, since the data set may fill the same memory with its next image.
        return image.clone(), class_index(label, image_id) if self.labels else UNLABELLED, image_id

    def _check(self, image: object, image_id: str, item: Any) -> None:
        if not isinstance(image, Tensor) or image.ndim != 3 or not image.is_floating_point():
            given = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"image {image_id!r} must be a float tensor (C, H, W), not {given}{_wrapper(item)}")
        self.first = self.first or (image.shape, image_id)
        if image.shape != self.first[0]:
            shapes = f"{tuple(self.first[0])} ({self.first[1]!r}) and {tuple(image.shape)} ({image_id!r})"
            raise ValueError(f"images of one data set must be of one size, not {shapes}: resize and crop them in the data set")
        if not image.isfinite().all():
            raise ValueError(f"image {image_id!r} has {'NaN' if image.isnan().any() else 'infinite'} pixels")
        if self.normalisation is not None:
            pixels = self.normalisation.invert(image)
            low, high = float(pixels.min()), float(pixels.max())
            if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
                raise ValueError(
                    f"image {image_id!r} goes from {low:.3g} to {high:.3g} and not from 0 to 1 once the data set's normalisation is undone:"
                    " is it normalised as its attribute `normalisation` says?"
                )
