"""The grid pointing game: in a mosaic of images of different classes, a class's map should point at that class's image.

It measures localisation without annotations, since the position of each class's image is known. All images come from the same data set.

Source: Böhle, Fritz, Schiele, "Convolutional Dynamic Alignment Networks for Interpretable Classifications", CVPR 2021 (arXiv 2104.00032);
Rao, Böhle, Schiele, "Towards Better Understanding Attribution Methods", CVPR 2022 (arXiv 2205.10435).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idsds.common.numbers import as_whole
from idsds.common.randomness import generator
from idsds.common.registry import UnknownNameError
from idsds.methods.base import Method, shared_maps
from idsds.protocols.base import Batch, register_protocol

Size = Literal["full", "shrunk"]


def mosaics(batch: Batch, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return a mosaic for each image, (B, 3, side * H, side * W), and the row-major index of the image's own cell, (B,).

    The cell, and the images of other classes that fill the other cells, are keyed by the image's id; no companion appears twice in a
    mosaic.

    Raises:
        ValueError: without companions, or if too few of them are of another class.
    """
    if batch.companions is None:
        raise ValueError("the grid pointing game needs images of other classes: a data set by its name, or Batch(companions=...)")
    others, classes = (found.to(batch.images.device) for found in batch.companions())
    found, cells = [], []
    for image, target, image_id in zip(batch.images, batch.targets, batch.image_ids, strict=True):
        draw = generator(seed, "grid pointing game", image_id)
        suitable = torch.nonzero(classes != target)[:, 0]
        if len(suitable) < side**2 - 1:
            raise ValueError(
                f"a mosaic of {side} x {side} needs {side**2 - 1} images of other classes than {int(target)}, not {len(suitable)}"
            )
        chosen = suitable[torch.randperm(len(suitable), generator=draw)[: side**2 - 1].to(suitable.device)]
        cell = int(torch.randint(side**2, (), generator=draw))
        parts = list(others[chosen].to(image))
        parts.insert(cell, image)
        rows = [torch.cat(parts[row * side : (row + 1) * side], dim=2) for row in range(side)]
        found.append(torch.cat(rows, dim=1))
        cells.append(cell)
    return torch.stack(found), torch.tensor(cells, device=batch.images.device)


def cell_share(maps: Tensor, cells: Tensor, side: int) -> Tensor:
    """Return the fraction of positive attribution inside a cell, (B,) in [0, 1]; NaN without any, or if a value is not finite."""
    positive = maps.double().clamp(min=0)
    undefined = ~maps.isfinite().flatten(1).all(dim=1)
    height, width = (length // side for length in maps.shape[-2:])
    sums = positive.view(len(maps), side, height, side, width).sum(dim=(2, 4)).flatten(1)  # (B, cells)
    share = sums.gather(1, cells[:, None])[:, 0] / sums.sum(dim=1)  # 0 / 0 = NaN
    return share.masked_fill(undefined, torch.nan)


@register_protocol(
    "grid_pointing_game", in_domain=False, higher_is_better=True, range=(0, 1), asks="localised", source="Böhle et al., CVPR 2021"
)
def grid_pointing_game(
    model: nn.Module, methods: Sequence[Method], batch: Batch, prepared: dict[str, Tensor], *, side: int = 2, size: Size = "full"
) -> dict[str, dict[str, Tensor]]:
    """Score the fraction of positive attribution in the target's cell, in [0, 1]; higher is better, 1 / side^2 for uniform maps.

    Args:
        model: the net. Unlike in the papers, it need not classify the image confidently.
        methods: methods on that net.
        batch: images (B, 3, H, W), targets, ids, companions.
        prepared: not used.
        side: images per side of a mosaic, at least 2.
        size: ``full``: the mosaic is ``side`` times as large as an image, for nets that take any size; ``shrunk``: as large as one image.

    Returns:
        By method name ``score`` (B,), NaN without positive attribution, and the ``cell`` (B,) of the image.

    Raises:
        UnknownNameError: for an unknown size.
        ValueError: if ``side`` is below 2, or there are too few companions.
    """
    as_whole("side", side, least=2)
    if size not in get_args(Size):
        raise UnknownNameError("size of a mosaic", size, get_args(Size))
    images, cells = mosaics(batch, side, methods[0].seed)
    if size == "shrunk":
        images = F.interpolate(images, size=batch.images.shape[-2:], mode="area")
    if images.shape[-2] % side or images.shape[-1] % side:
        raise ValueError(f"side {side} does not divide mosaics of {images.shape[-2]} x {images.shape[-1]} pixels")
    maps = shared_maps(methods, images, batch.targets, batch.image_ids)
    return {name: {"score": cell_share(found, cells, side), "cell": cells} for name, found in maps.items()}
