"""Split rules: which of a data set's images are for training, validation and testing.

If a data set comes with fewer than three parts, the missing ones are drawn by a keyed, stratified rule that depends only on the image
ids: it is the same on every machine, and adding images does not reassign the others.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch

from idsds.common.randomness import generator
from idsds.datasets.base import ImageDataset, hashed

# Fraction of each class in the validation and test splits; the rest is for training.
VALIDATION, TEST = 0.08, 0.10


def stratified_split(
    image_ids: Sequence[str], targets: Sequence[int], split: str, *, validation: float = VALIDATION, test: float = TEST
) -> list[int]:
    """Return the indices of one split: within each class, ordered by the hash of the id, first the test, then the validation images.

    Args:
        validation: fraction of each class for validation, in [0, 1).
        test: fraction of each class for testing, in [0, 1).

    Raises:
        ValueError: if the fractions leave nothing for training.
    """
    if validation < 0 or test < 0 or validation + test >= 1:
        raise ValueError(f"fractions of a split must be at least 0 and sum to less than 1, not validation {validation} and test {test}")
    chosen: list[int] = []
    for ordered in _by_class(image_ids, targets, "split"):
        first, second = round(test * len(ordered)), round(validation * len(ordered))
        bounds = {"test": (0, first), "val": (first, first + second), "train": (first + second, None)}[split]
        chosen += ordered[slice(*bounds)]
    return sorted(chosen)


def _by_class(image_ids: Sequence[str], targets: Sequence[int], key: str) -> Iterable[list[int]]:
    """Return the indices of each class, in the order of the hash of ``key`` and image id."""
    members: dict[int, list[int]] = defaultdict(list)
    for index in sorted(range(len(targets)), key=lambda i: hashed(f"{key} {image_ids[i]}")):
        members[targets[index]].append(index)
    return members.values()


def official_half(split: str, held_out: float) -> str:
    """Return which official half, ``train`` or ``test``, a split is drawn from, for a data set with two parts."""
    return "test" if split == "test" or (split == "val" and not held_out) else "train"


def within_half(image_ids: Sequence[str], targets: Sequence[int], split: str, held_out: float) -> list[int]:
    """Return the indices of a split within its :func:`official_half`."""
    if split == "test" or not held_out:
        return list(range(len(image_ids)))
    return stratified_split(image_ids, targets, split, validation=held_out, test=0)


def nested_share(image_ids: Sequence[str], targets: Sequence[int], fraction: float, seed: int = 0) -> list[int]:
    """Return the indices of a fraction of the training images, stratified by class and nested: larger fractions contain smaller ones.

    From each class it takes the first ``fraction`` of the images, at least one, ordered by a hash of seed and id.

    Args:
        fraction: in (0, 1].

    Raises:
        ValueError: if ``fraction`` is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a fraction of the training images must be in (0, 1], not {fraction!r}")
    classes = _by_class(image_ids, targets, f"share {seed}")
    return sorted(index for ordered in classes for index in ordered[: max(1, round(fraction * len(ordered)))])


def permuted(dataset: ImageDataset, seed: int = 0) -> ImageDataset:
    """Permute the labels among the images, keyed by seed and name; class sizes do not change."""
    order = torch.randperm(len(dataset), generator=generator(seed, "permuted labels", dataset.name)).tolist()
    changed = copy.copy(dataset)
    changed.targets = [dataset.targets[index] for index in order]
    changed.parts = None  # the drawn parts do not match the new label
    return changed
