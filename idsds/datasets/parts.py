"""Images of creatures whose parts are known and can be removed: the interface between data sets and the FunnyBirds protocols.

A *subset* of the P parts is an integer in [0, 2^P - 1] whose bit p is set if part p is drawn; 2^P - 1 is the whole creature.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Parts:
    """The parts of a data set's images, see :attr:`idsds.datasets.ImageDataset.parts`. Images are identified by their ids.

    Args:
        names: names of the P parts.
        variants: which variant of each part a class has, integers (K, P).
        objects: the largest number of background objects in an image.
        owners: for each region of :meth:`regions`, the part that it belongs to, 0 to P - 1, or P + the index of its background object.
    """

    def __init__(self, names: tuple[str, ...], variants: Tensor, objects: int, owners: tuple[int, ...]) -> None:
        self.names, self.variants, self.objects, self.owners = names, variants, objects, owners

    @property
    def whole(self) -> int:
        """The subset of all parts."""
        return 2 ** len(self.names) - 1

    def count(self, image_id: str) -> int:
        """Return an image's number of background objects, visible or not."""
        raise NotImplementedError

    def draw(self, image_id: str, subset: int) -> Tensor:
        """Return an image with the parts of a subset and all background objects, (3, H, W) in [0, 1]."""
        raise NotImplementedError

    def without_object(self, image_id: str, number: int) -> Tensor:
        """Return an image with all parts and all background objects but one, (3, H, W) in [0, 1]."""
        raise NotImplementedError

    def regions(self, image_id: str) -> Tensor:
        """Return the visible pixels of each region in the whole image, bool (R, H, W)."""
        raise NotImplementedError

    def fitting(self, target: int, subset: int) -> Tensor:
        """Return equal probabilities (K,) for all classes that share the drawn parts of ``target``; all classes if no part is drawn."""
        drawn = [part for part in range(len(self.names)) if subset >> part & 1]
        fits = (self.variants[:, drawn] == self.variants[target, drawn]).all(dim=1)
        return fits / fits.sum()

    def drop(self, generator: torch.Generator) -> int:
        """Return a random subset for training: all parts in half of the draws, otherwise without 0 to P random parts, uniformly."""
        order = torch.randperm(len(self.names), generator=generator).tolist()
        half, number = torch.rand((), generator=generator), int(torch.randint(len(order) + 1, (), generator=generator))
        return self.whole if half < 0.5 else self.whole - sum(2**part for part in order[:number])


def members(parts: int) -> Tensor:
    """Return which of the parts each subset has, bool (2^parts, parts)."""
    return (torch.arange(2**parts)[:, None] >> torch.arange(parts) & 1).bool()
