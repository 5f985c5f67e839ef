"""Split rules: which images of a data set are for training, validation and test.

Where a data set comes with fewer than three parts, the missing ones are cut by a keyed, stratified rule that depends on the image ids
alone: it is the same on every machine and does not change for the other images when some are added.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence

import torch

from idsds.common.randomness import generator
from idsds.datasets.base import ImageDataset, hashed

# Share of each class in the validation and in the test split; the rest is for training.
VALIDATION, TEST = 0.08, 0.10


def stratified_split(
    image_ids: Sequence[str], targets: Sequence[int], split: str, *, validation: float = VALIDATION, test: float = TEST
) -> list[int]:
    """Indices of one split: within each class, images in the order of their id's hash, the first for the test, the next for validation.

    Args:
        image_ids: one id per image.
        targets: one class index per image.
        split: ``train``, ``val`` or ``test``.
        validation: share of each class that is for validation, in [0, 1).
        test: share of each class that is for the test, in [0, 1).

    Raises:
        ValueError: for shares that leave nothing for training.
    """
    if validation < 0 or test < 0 or validation + test >= 1:
        raise ValueError(f"shares of a split must be at least 0 and sum to less than 1, not validation {validation} and test {test}")
    members: dict[int, list[int]] = defaultdict(list)
    for index, target in enumerate(targets):
        members[target].append(index)
    chosen: list[int] = []
    for of_class in members.values():
        ordered = sorted(of_class, key=lambda i: hashed(f"split {image_ids[i]}"))
        first, second = round(test * len(ordered)), round(validation * len(ordered))
        bounds = {"test": (0, first), "val": (first, first + second), "train": (first + second, None)}[split]
        chosen += ordered[slice(*bounds)]
    return sorted(chosen)


def official_half(split: str, held_out: float) -> str:
    """Which half, ``train`` or ``test``, of a data set with two official parts a split is cut from; see :mod:`idsds.datasets.folders`."""
    return "test" if split == "test" or (split == "val" and not held_out) else "train"


def within_half(image_ids: Sequence[str], targets: Sequence[int], split: str, held_out: float) -> list[int]:
    """Indices of a split among the images of its :func:`official_half`."""
    if split == "test" or not held_out:
        return list(range(len(image_ids)))
    return stratified_split(image_ids, targets, split, validation=held_out, test=0)


def nested_share(image_ids: Sequence[str], targets: Sequence[int], fraction: float, seed: int = 0) -> list[int]:
    """Indices of a share of the training images, stratified by class and nested: a smaller share lies within every larger one.

    Within each class, images in the order of a hash of seed and id, the first ``fraction`` of them, and at least one.

    Args:
        image_ids: one id per image.
        targets: one class index per image.
        fraction: in (0, 1].
        seed: another seed draws other images.

    Raises:
        ValueError: for a share that is none.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a share of the training images must lie in (0, 1], not {fraction!r}")
    members: dict[int, list[int]] = defaultdict(list)
    for index, target in enumerate(targets):
        members[target].append(index)
    chosen: list[int] = []
    for of_class in members.values():
        ordered = sorted(of_class, key=lambda i: hashed(f"share {seed} {image_ids[i]}"))
        chosen += ordered[: max(1, round(fraction * len(ordered)))]
    return sorted(chosen)


def permuted(dataset: ImageDataset, seed: int = 0) -> ImageDataset:
    """The same images with their labels permuted among them, keyed by seed and name: each class keeps its number of images."""
    order = torch.randperm(len(dataset), generator=generator(seed, "permuted labels", dataset.name)).tolist()
    changed = copy.copy(dataset)
    changed.targets = [dataset.targets[index] for index in order]
    return changed
