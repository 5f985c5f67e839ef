"""Drawn creatures with five parts: an embedded data set in the manner of FunnyBirds, in which every intervention is exact.

Ten classes are combinations of variants of beak, eye, foot, tail and wing. Every variant occurs in several classes, and two classes share
at most two parts. Rotation, side, size, position, lighting, background and up to eight background objects vary. Removing a part reveals
what lies behind it, pixel by pixel. The idea is from FunnyBirds (Hesse, Schaub-Meyer, Roth, ICCV 2023, arXiv 2308.06248); none of its
images is used.

    >>> sprites = idsds.create_dataset("sprites", "test")
    >>> parts, image_id = sprites.parts, sprites.image_ids[0]
    >>> parts.draw(image_id, parts.whole - 2)            # (3, 64, 64) in [0, 1]: the whole creature without part 1, the eye
    >>> parts.without_object(image_id, 0)                # ... without its first background object
    >>> parts.regions(image_id)                          # bool (5 + 8, 64, 64): pixels of the five parts, then of the objects

The exact Shapley values of the parts for a net follow from its logits for all 32 subsets: :func:`idsds.protocols.parts.part_table`,
:func:`~idsds.protocols.parts.target_logits`, :func:`~idsds.protocols.parts.part_shapley`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from idsds.common.normalisation import Normalisation
from idsds.common.randomness import generator
from idsds.datasets.base import ImageDataset, register_dataset
from idsds.datasets.parts import Parts

NAMES = ("beak", "eye", "foot", "tail", "wing")
# Variants of each class's parts, chosen so that every class shares two parts with one class and two others with another.
CLASSES = torch.tensor(
    [
        (0, 0, 1, 3, 3),
        (0, 1, 0, 0, 2),
        (0, 1, 2, 3, 1),
        (0, 2, 0, 3, 0),
        (1, 0, 0, 2, 0),
        (1, 1, 1, 2, 3),
        (1, 2, 1, 1, 1),
        (2, 0, 1, 0, 2),
        (2, 0, 2, 1, 1),
        (2, 1, 2, 2, 2),
    ]
)
SIDE, OBJECTS = 64, 8
SIZES = {"train": 2000, "val": 300, "test": 300}
DIAMOND, DISC, BOX = range(3)
BODY = -1
# Shapes of each variant: kind, centre (right and down from the body's), radii, rotation in degrees, colour.
SHAPES: dict[int, list[list[tuple]]] = {
    0: [
        [(DIAMOND, 16, -4, 8, 3.5, 0, (1.0, 0.55, 0.0))],
        [(DISC, 15, -3, 4.5, 4.5, 0, (0.95, 0.9, 0.1))],
        [(BOX, 15, -3, 5, 3, 25, (0.55, 0.1, 0.1))],
    ],
    1: [
        [(DISC, 8, -4, 3.5, 3.5, 0, (0.1, 0.2, 0.9))],
        [(BOX, 8, -4, 3, 3, 0, (0.05, 0.05, 0.05))],
        [(DIAMOND, 8, -4, 4.2, 4.2, 0, (1.0, 1.0, 1.0))],
    ],
    2: [
        [(DISC, x, 12, 1.8, 5, 0, (1.0, 0.4, 0.1)) for x in (-5, 5)],
        [(DISC, x, 11, 3.5, 3, 0, (0.6, 0.1, 0.8)) for x in (-5, 5)],
        [(BOX, x, 11, 3.5, 2.5, 0, (0.0, 0.55, 0.15)) for x in (-5, 5)],
    ],
    3: [
        [(DISC, -17, -1, 8, 3.5, 10, (0.9, 0.05, 0.1))],
        [(DIAMOND, -17, -4, 9, 5, 40, (0.0, 0.8, 0.85))],
        [(BOX, -17, 0, 5, 5, 0, (1.0, 0.85, 0.0))],
        [(DISC, -16, y, 6.5, 2.5, 4 * y, (0.9, 0.2, 0.75)) for y in (-6, 3)],
    ],
    4: [
        [(DISC, -3, 0, 8, 4, -20, (0.15, 0.3, 0.95))],
        [(DIAMOND, -3, 0, 9, 6, 0, (0.2, 0.75, 0.2))],
        [(BOX, -3, 0, 5, 4, 15, (0.95, 0.45, 0.1))],
        [(BOX, -3, y, 7, 1.6, 0, (0.95, 0.5, 0.7)) for y in (-3, 3)],
    ],
}
BODY_SHAPE = (DISC, 0, 0, 14, 9.5, 0, (0.6, 0.6, 0.6))
# From back to front: later shapes cover earlier ones.
ORDER = (3, 2, BODY, 4, 0, 1)


@dataclass(frozen=True)
class _Scene:
    """A rasterised scene, from which any subset of shapes can be drawn.

    Args:
        layers: owner of each of the S shapes, (S,), from back to front: a part's index, 5 + o for background object o, -1 for the body.
        codes: which shapes cover each pixel, (64, 64), with bit s set for shape s.
        colours: colour of each shape under the scene's lighting, (S, 3).
        canvas: the background, (3, 64, 64).
    """

    layers: Tensor
    codes: Tensor
    colours: Tensor
    canvas: Tensor

    def top(self, drawn: Tensor) -> Tensor:
        """Return the frontmost shape at each pixel, (64, 64), -1 for the canvas; ``drawn`` (S,) selects the shapes."""
        there = int((drawn.long() << torch.arange(len(drawn))).sum())
        return torch.frexp((self.codes & there).float()).exponent.long() - 1  # the highest set bit, exact for fewer than 24

    def image(self, drawn: Tensor) -> Tensor:
        """Return the image of the selected shapes, (3, 64, 64)."""
        top = self.top(drawn)
        painted = self.colours.T[:, top.clamp(min=0)]
        return torch.where(top >= 0, painted, self.canvas)


def _placed(shapes: list[tuple], centre: Tensor, matrix: Tensor) -> Tensor:
    """Return which pixels each shape covers, (S, 64, 64); ``matrix`` (2, 2) rotates and scales the axes about ``centre`` (2,)."""
    kinds = torch.tensor([shape[0] for shape in shapes])[:, None, None]
    numbers = torch.tensor([shape[1:6] for shape in shapes])  # (S, 5)
    axis = torch.arange(SIDE) + 0.5
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy")) - centre[:, None, None]  # (2, 64, 64): right, down
    own = torch.einsum("ij,jyx->iyx", torch.linalg.inv(matrix), pixels)
    shifted = own - numbers[:, :2, None, None]  # (S, 2, 64, 64)
    turn = torch.deg2rad(numbers[:, 4])
    turned = torch.stack([torch.stack([turn.cos(), turn.sin()], 1), torch.stack([-turn.sin(), turn.cos()], 1)], 1)  # (S, 2, 2)
    first, second = (torch.einsum("sij,sjyx->siyx", turned, shifted) / numbers[:, 2:4, None, None]).abs().unbind(dim=1)
    length = torch.where(kinds == DIAMOND, first + second, torch.where(kinds == DISC, first**2 + second**2, torch.maximum(first, second)))
    return length <= 1


def _between(draw: torch.Generator, low: float, high: float, *size: int) -> Tensor:
    return low + (high - low) * torch.rand(size, generator=draw)


@lru_cache(maxsize=4096)
def scene(target: int, image_id: str) -> _Scene:
    """Return an image's scene; all variation is keyed by its id."""
    draw = generator(0, "sprites", image_id)
    count = int(torch.randint(OBJECTS + 1, (), generator=draw))
    kinds, turns = torch.randint(3, (count, 1), generator=draw), _between(draw, 0, 90, count, 1)
    places, radii = _between(draw, 2, SIDE - 2, count, 2), _between(draw, 2, 6, count, 2)
    far = [tuple(row) for row in torch.cat([kinds, places, radii, turns], dim=1).tolist()]
    near = [(part, shape) for part in ORDER for shape in ([BODY_SHAPE] if part == BODY else SHAPES[part][CLASSES[target, part]])]
    turn, size = torch.deg2rad(_between(draw, -20, 20)), _between(draw, 0.9, 1.1)
    side = 1.0 if torch.rand((), generator=draw) < 0.5 else -1.0
    rotation = torch.stack([torch.stack([turn.cos(), -turn.sin()]), torch.stack([turn.sin(), turn.cos()])])
    matrix = size * rotation @ torch.diag(torch.tensor([side, 1.0]))
    centre = SIDE / 2 + _between(draw, -4, 4, 2)
    inside = _placed([shape for _, shape in near], centre, matrix)
    if far:
        inside = torch.cat([_placed(far, torch.zeros(2), torch.eye(2)), inside])
    light = _between(draw, 0.7, 1.0) * _between(draw, 0.85, 1.0, 3)
    ends, slope = _between(draw, 0.35, 1.0, 2, 3, 1, 1), torch.linspace(0, 1, SIDE)[:, None]
    canvas = (ends[0] + (ends[1] - ends[0]) * slope).expand(3, SIDE, SIDE)
    colours = torch.cat([_between(draw, 0.1, 0.9, count, 3), torch.tensor([shape[6] for _, shape in near])])
    layers = torch.tensor([len(NAMES) + number for number in range(count)] + [part for part, _ in near])
    codes = (inside.int() << torch.arange(len(inside), dtype=torch.int32)[:, None, None]).sum(dim=0)
    return _Scene(layers, codes, colours * light, canvas * light[:, None, None])


class Sprites(Parts):
    """The parts of some images.

    Args:
        targets: class index by image id.
    """

    def __init__(self, targets: dict[str, int]) -> None:
        super().__init__(NAMES, CLASSES, OBJECTS, tuple(range(len(NAMES) + OBJECTS)))
        self.targets = targets

    def scene(self, image_id: str) -> _Scene:
        """Return the scene of an image."""
        return scene(self.targets[image_id], image_id)

    def count(self, image_id: str) -> int:
        """Return the number of background objects, see :class:`Parts`."""
        return int((self.scene(image_id).layers >= len(NAMES)).sum())

    def draw(self, image_id: str, subset: int) -> Tensor:
        """Return the image of a subset of the parts, see :class:`Parts`."""
        found = self.scene(image_id)
        kept = torch.tensor([subset >> part & 1 for part in range(len(NAMES))] + [1] * (OBJECTS + 1)).bool()  # the last is the body, -1
        return found.image(kept[found.layers])

    def without_object(self, image_id: str, number: int) -> Tensor:
        """Return the image without a background object, see :class:`Parts`."""
        found = self.scene(image_id)
        if not 0 <= number < self.count(image_id):
            raise ValueError(f"image {image_id!r} has {self.count(image_id)} background objects, there is no number {number}")
        return found.image(found.layers != len(NAMES) + number)

    def regions(self, image_id: str) -> Tensor:
        """Return the visible pixels of each part and object, see :class:`Parts`."""
        found = self.scene(image_id)
        top = found.top(torch.ones_like(found.layers, dtype=torch.bool))
        owner = torch.where(top >= 0, found.layers[top.clamp(min=0)], BODY)
        return owner == torch.arange(len(NAMES) + OBJECTS)[:, None, None]


class _Read:
    """The data set's ``read`` and ``augment``."""

    def __init__(self, parts: Sprites, image_ids: list[str]) -> None:
        self.parts, self.image_ids = parts, image_ids

    def read(self, index: int) -> Tensor:
        return self.parts.draw(self.image_ids[index], self.parts.whole)

    def augment(self, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return an image without some of its parts, and the classes consistent with the rest."""
        image_id = self.image_ids[index]
        subset = self.parts.drop(generator)
        return self.parts.draw(image_id, subset), self.parts.fitting(self.parts.targets[image_id], subset)


@register_dataset(
    num_classes=len(CLASSES),
    image_size=SIDE,
    normalisation=Normalisation((0.51,) * 3, (0.165,) * 3),
    embedded=True,
    training={"epochs": 6},
    source="made by this package, nothing to download; after FunnyBirds (Hesse, Schaub-Meyer, Roth, ICCV 2023)",
)
def sprites(split: str, normalisation: Normalisation) -> ImageDataset:
    """Draw 64 x 64 colour images of ten creatures with five known parts; 2,000 / 300 / 300 images.

    In training, half of the images lack 0 to 5 random parts, and their targets are spread over all classes consistent with the rest.
    """
    image_ids = [f"sprites/{split}/{index:04d}" for index in range(SIZES[split])]
    targets = [index % len(CLASSES) for index in range(SIZES[split])]
    parts = Sprites(dict(zip(image_ids, targets, strict=True)))
    images = _Read(parts, image_ids)
    names = ["-".join(f"{name}{variant}" for name, variant in zip(NAMES, row, strict=True)) for row in CLASSES.tolist()]
    dataset = ImageDataset("sprites", split, image_ids, targets, images.read, names, normalisation, images.augment)
    dataset.parts = parts
    return dataset
