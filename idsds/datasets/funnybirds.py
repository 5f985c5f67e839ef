"""FunnyBirds (Hesse, Schaub-Meyer, Roth, ICCV 2023, arXiv 2308.06248) in the folder layout of its zip: rendered birds of five parts.

The zip contains every intervention on the 500 test images: the bird without each subset of its parts, and without each background object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from idsds.common.normalisation import UNIT, Normalisation
from idsds.datasets.base import ImageDataset, OnError, register_dataset
from idsds.datasets.folders import Root, data_root
from idsds.datasets.images import read_rgb, stamp_of, to_unit
from idsds.datasets.parts import Parts
from idsds.datasets.splits import VALIDATION, official_half, within_half

WANTED = "FunnyBirds.zip as it unpacks: classes.json, dataset_train.json, dataset_test.json, train/<class>/*.png, test_interventions/ ..."
SIDE, OBJECTS = 256, 50
#: Colours of each part in a part map, two for paired parts; background object i has (204, 204, 204 + i).
COLOURS = {
    "beak": [(255, 255, 0)],
    "eye": [(255, 255, 253), (255, 255, 254)],
    "foot": [(255, 0, 1), (255, 0, 2)],
    "tail": [(0, 0, 255)],
    "wing": [(0, 255, 1), (0, 255, 2)],
}
NAMES = tuple(COLOURS)
_KEYS = [colour for colours in COLOURS.values() for colour in colours] + [(204, 204, 204 + number) for number in range(OBJECTS)]
_OWNERS = tuple(part for part, name in enumerate(NAMES) for _ in COLOURS[name]) + tuple(range(len(NAMES), len(NAMES) + OBJECTS))
#: Marks a part that a scene lacks.
ABSENT = "placeholder"


def objects_of(scene: Mapping[str, Any]) -> int:
    """Return a scene's number of background objects: the entries in the first of its ``bg_`` strings."""
    listed = next((str(value) for key, value in scene.items() if key.startswith("bg_")), "")
    return sum(bool(entry.strip()) for entry in listed.split(","))


class Birds(Parts):
    """The parts of the images of one half of the data set, ``train`` or ``test``.

    Args:
        half: which half; the zip has interventions for ``test`` only.
        scenes: by image id, the number that names its files, and the scene's description.
        variants: of the parts of each class.
        size: pixels per side.
    """

    def __init__(self, root: Path, half: str, scenes: Mapping[str, tuple[int, dict]], variants: Tensor, size: int) -> None:
        super().__init__(NAMES, variants, OBJECTS, _OWNERS)
        self.root, self.half, self.scenes, self.size = root, half, scenes, size

    def file(self, image_id: str, kind: str, *below: str) -> Path:
        """Return a file of an image in the folder ``<half><kind>``."""
        number, found = self.scenes[image_id]
        folder = self.root / f"{self.half}{kind}" / str(found["class_idx"])
        return folder.joinpath(f"{number:06d}", *below) if below else folder / f"{number:06d}.png"

    def read(self, path: Path) -> Tensor:
        """Return an image without its alpha channel, (3, size, size) in [0, 1]. Raises ImageReadError."""
        picture = read_rgb(path)
        return to_unit(picture if picture.size == (self.size, self.size) else transforms.resize(picture, [self.size, self.size]))

    def subset(self, image_id: str) -> int:
        """Return which parts the unmodified image shows: some training birds lack parts."""
        scene = self.scenes[image_id][1]
        return sum(2**part for part, name in enumerate(NAMES) if scene.get(f"{name}_model") != ABSENT)

    def count(self, image_id: str) -> int:
        """Return the number of background objects, see :class:`Parts`."""
        return objects_of(self.scenes[image_id][1])

    def draw(self, image_id: str, subset: int) -> Tensor:
        """Return the image of a subset of the parts, see :class:`Parts`."""
        kept = [name for part, name in enumerate(NAMES) if subset >> part & 1]
        return self.read(self.file(image_id, "_interventions", f"body_{'_'.join(kept)}.png"))

    def without_object(self, image_id: str, number: int) -> Tensor:
        """Return the image without a background object, see :class:`Parts`."""
        return self.read(self.file(image_id, "_interventions", "background_interventions", f"{number}.png"))

    def regions(self, image_id: str) -> Tensor:
        """Return the visible pixels of each part and object, see :class:`Parts`."""
        colours = np.asarray(read_rgb(self.file(image_id, "_part_map")).resize((self.size, self.size), Image.Resampling.NEAREST))
        codes, keys = (np.asarray(values, dtype=np.int64) @ (65536, 256, 1) for values in (colours, _KEYS))
        return torch.from_numpy(codes) == torch.from_numpy(keys)[:, None, None]


class _Read:
    """The data set's ``read`` and ``augment``."""

    def __init__(self, parts: Birds, image_ids: Sequence[str], targets: Sequence[int]) -> None:
        self.parts, self.image_ids, self.targets = parts, image_ids, targets

    def read(self, index: int) -> Tensor:
        return self.parts.read(self.parts.file(self.image_ids[index], ""))

    def augment(self, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return an image, which may lack parts already, and the classes consistent with the parts shown."""
        return self.read(index), self.parts.fitting(self.targets[index], self.parts.subset(self.image_ids[index]))

    def stamp(self, index: int) -> str:
        """Return :func:`stamp_of` an image's file."""
        return stamp_of(self.parts.file(self.image_ids[index], ""))


def _json(root: Path, name: str) -> list[dict]:
    if not (root / name).is_file():
        raise FileNotFoundError(f"data set 'funnybirds': {str(root)!r} does not hold {name!r}; wanted is {WANTED}")
    return json.loads((root / name).read_text(encoding="utf-8"))


@register_dataset(
    num_classes=50,
    image_size=SIDE,
    normalisation=UNIT,
    source="FunnyBirds (Hesse, Schaub-Meyer, Roth, ICCV 2023), github.com/visinf/funnybirds: 50,000 training and 500 test images",
)
def funnybirds(
    split: str,
    normalisation: Normalisation,
    root: Root = None,
    image_size: int = SIDE,
    held_out: float = VALIDATION,
    on_error: OnError = "raise",
) -> ImageDataset:
    """Load 50 classes of birds from the unpacked zip, or from the folder ``FunnyBirds`` in it.

    Half of the training images lack 0 to 5 parts, and their targets are spread over all classes consistent with the rest. ``val`` is a
    fraction ``held_out`` of the training images, excluding those that lack parts. For every net, pixels are in [0, 1] and not normalised,
    as in the paper.
    """
    folder = data_root("funnybirds", root, WANTED)
    folder = folder / "FunnyBirds" if (folder / "FunnyBirds").is_dir() else folder
    classes = sorted(_json(folder, "classes.json"), key=lambda found: found["class_idx"])
    variants = torch.tensor([[found["parts"][name] for name in NAMES] for found in classes])
    half = official_half(split, held_out)
    scenes = list(enumerate(_json(folder, f"dataset_{half}.json")))
    ids = [f"funnybirds/{half}/{number:06d}" for number, _ in scenes]
    targets = [scene["class_idx"] for _, scene in scenes]
    parts = Birds(folder, half, dict(zip(ids, scenes, strict=True)), variants, image_size)
    chosen = within_half(ids, targets, split, held_out)
    if split == "val":
        chosen = [index for index in chosen if parts.subset(ids[index]) == parts.whole]
    ids, targets = [ids[index] for index in chosen], [targets[index] for index in chosen]
    images = _Read(parts, ids, targets)
    names = [str(found["class_idx"]) for found in classes]
    augment = images.augment if split == "train" else None
    dataset = ImageDataset("funnybirds", split, ids, targets, images.read, names, UNIT, augment, on_error)
    dataset.parts = parts
    return dataset
