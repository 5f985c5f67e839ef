"""Blocks of one colour as parts, and a net that counts them: every protocol's answer can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from idsds.datasets.parts import Parts
from idsds.models import HALF
from idsds.protocols import Batch

#: Class 0 shares parts 0 and 1 with class 1, parts 2 and 3 with class 2, part 4 with class 3; no other class has two such rivals.
VARIANTS = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 1, 1, 1], [1, 1, 0, 0, 1], [2, 2, 2, 2, 0]])
WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])


class Blocks(Parts):
    """Images of 16 x 20 pixels: part p is a block of its variant's channel in the upper half, object o a grey one in the lower half.

    Args:
        targets: by image id.
        counts: of background objects, by image id.
        hidden: whether what is listed (parts, then 5 + object) has no pixel in its region.
    """

    def __init__(self, targets: Mapping[str, int], counts: Mapping[str, int], hidden: tuple[int, ...] = ()) -> None:
        super().__init__(tuple("abcde"), VARIANTS, 5, tuple(range(10)))
        self.targets, self.counts, self.hidden = targets, counts, hidden

    def count(self, image_id: str) -> int:
        return self.counts[image_id]

    @staticmethod
    def _place(number: int) -> tuple[slice, slice]:
        return slice(3 + 8 * (number // 5), 5 + 8 * (number // 5)), slice(4 * (number % 5) + 1, 4 * (number % 5) + 3)

    def _drawn(self, image_id: str, subset: int, without: int | None = None) -> Tensor:
        image = torch.zeros(3, 16, 20)
        for part, variant in enumerate(VARIANTS[self.targets[image_id]].tolist()):
            if subset >> part & 1:
                image[(variant, *self._place(part))] = 1
        for number in range(self.counts[image_id]):
            if number != without:
                image[(slice(None), *self._place(5 + number))] = 1
        return image

    def draw(self, image_id: str, subset: int) -> Tensor:
        return self._drawn(image_id, subset)

    def without_object(self, image_id: str, number: int) -> Tensor:
        return self._drawn(image_id, self.whole, number)

    def regions(self, image_id: str) -> Tensor:
        found = torch.zeros(10, 16, 20, dtype=torch.bool)
        for number in range(5 + self.counts[image_id]):
            if number not in self.hidden:
                found[(number, *self._place(number))] = True
        return found


class Counting(nn.Module):
    """logit_k = the summed weights of the parts in class k's variants + what each object adds; class 3 has half a point more.

    Args:
        objects: what each of the five objects adds to every logit.
    """

    def __init__(self, objects: tuple[float, ...] = (0.0,) * 5) -> None:
        super().__init__()
        filters = torch.zeros(4, 3, 16, 20)
        for target, variants in enumerate(VARIANTS.tolist()):
            for part, variant in enumerate(variants):
                filters[(target, variant, *Blocks._place(part))] = WEIGHTS[part] / 4
        for number, weight in enumerate(objects):
            filters[(slice(None), slice(None), *Blocks._place(5 + number))] = weight / 12
        self.register_buffer("filters", filters.double())
        self.register_buffer("bias", torch.tensor([0, 0, 0, 0.5]).double())

    def forward(self, images: Tensor) -> Tensor:
        return torch.einsum("bcyx,kcyx->bk", HALF.invert(images), self.filters) + self.bias

    def exact(self, images: Tensor, targets: Tensor) -> Tensor:
        """Maps (B, 1, H, W) whose sum over each part is what it adds to the logit."""
        return (HALF.invert(images) * self.filters[targets]).sum(dim=1, keepdim=True)


def creatures(targets: list[int], counts: list[int], hidden: tuple[int, ...] = ()) -> Batch:
    """A batch of such images, with ids a, b, c, ..."""
    ids = [chr(ord("a") + number) for number in range(len(targets))]
    parts = Blocks(dict(zip(ids, targets, strict=True)), dict(zip(ids, counts, strict=True)), hidden)
    images = torch.stack([parts.draw(image_id, parts.whole) for image_id in ids]).double()
    return Batch(HALF(images), torch.tensor(targets), ids, HALF, parts=parts)
