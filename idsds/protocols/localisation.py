"""Mosaics of images of different classes, in which a class's map should point at that class's image.

They measure localisation without annotations, since the position of each class's image is known. All images come from the same data set. In
the grid pointing game the net sees the whole mosaic; in DiFull it is disconnected, so nothing outside the image can affect the logit.

Source: Böhle, Fritz, Schiele, "Convolutional Dynamic Alignment Networks for Interpretable Classifications", CVPR 2021 (arXiv 2104.00032);
Rao, Böhle, Schiele, "Towards Better Understanding Attribution Methods", CVPR 2022 (arXiv 2205.10435).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idsds.common.numbers import as_whole
from idsds.common.randomness import generator
from idsds.common.registry import check_name
from idsds.methods.base import Method, Passes, shared_maps, shared_passes
from idsds.models.base import frozen
from idsds.protocols.base import Batch, Columns, Prepared, on_model, register_protocol

Size = Literal["full", "shrunk"]


def mosaics(batch: Batch, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return a mosaic for each image, (B, 3, side * H, side * W), and the row-major index of the image's own cell, (B,).

    The cell, and the images of other classes that fill the other cells, are keyed by the image's id; no companion appears twice in a
    mosaic.

    Raises:
        ValueError: without companions, or if too few of them are of another class.
    """
    if batch.companions is None:
        raise ValueError("a mosaic needs images of other classes: a data set by its name, or Batch(companions=...)")
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


@register_protocol(higher_is_better=True, range=(0, 1), asks="localised", source="Böhle et al., CVPR 2021")
def grid_pointing_game(
    model: nn.Module, methods: Sequence[Method], batch: Batch, prepared: Prepared, *, side: int = 2, size: Size = "full"
) -> Columns:
    """Score the fraction of positive attribution in the target's cell, in [0, 1]; higher is better, 1 / side^2 for uniform maps.

    Args:
        model: the net. Unlike in the papers, it need not classify the image confidently.
        side: images per side of a mosaic, at least 2.
        size: ``full``: the mosaic is ``side`` times as large as an image, for nets that take any size; ``shrunk``: as large as one image.

    Returns:
        By method name ``score`` (B,), NaN without positive attribution, and the ``cell`` (B,) of the image.

    Raises:
        UnknownNameError: for an unknown size.
        ValueError: if ``side`` is below 2, or there are too few companions.
    """
    as_whole("side", side, least=2)
    check_name("size of a mosaic", size, get_args(Size))
    images, cells = mosaics(batch, side, methods[0].seed)
    if size == "shrunk":
        images = F.interpolate(images, size=batch.images.shape[-2:], mode="area")
    if images.shape[-2] % side or images.shape[-1] % side:
        raise ValueError(f"side {side} does not divide mosaics of {images.shape[-2]} x {images.shape[-1]} pixels")
    maps = shared_maps(methods, images, batch.targets, batch.image_ids)
    return {name: {"score": cell_share(found, cells, side), "cell": cells} for name, found in maps.items()}


class _Cellwise:
    """Mixed into a convolution or pooling: it is applied to each cell of a mosaic separately, (B, C, side * h, side * w)."""

    side: int
    cell: int

    def forward(self, features: Tensor) -> Tensor:
        height, width = (length // self.side for length in features.shape[-2:])
        cells = features.unflatten(3, (self.side, width)).unflatten(2, (self.side, height))  # (B, C, side, h, side, w)
        found = super().forward(cells.permute(0, 2, 4, 1, 3, 5).flatten(0, 2))  # type: ignore[misc]
        return found.unflatten(0, (-1, self.side, self.side)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class _OwnCell(_Cellwise):
    """Mixed into a global pooling: it reads one cell alone."""

    def forward(self, features: Tensor) -> Tensor:
        height, width = (length // self.side for length in features.shape[-2:])
        top, left = (place * length for place, length in zip(divmod(self.cell, self.side), (height, width), strict=True))
        return super(_Cellwise, self).forward(features[..., top : top + height, left : left + width])  # type: ignore[misc]


@cache
def _mixed(kind: type, module: type) -> type:
    return type(module.__name__, (kind, module), {"__module__": module.__module__})


def disconnected(net: nn.Module, side: int, cell: int) -> nn.Module:
    """Return a copy of a net that reads one cell of a mosaic; each layer sees every cell separately, and features keep the mosaic's form.

    Convolutions and poolings of ``torch.nn`` are changed, and the adaptive pooling in front of the classifier reads the cell alone. A net
    with a method ``within(side, cell)`` makes the copy itself.
    """
    if hasattr(net, "within"):
        return net.within(side, cell)  # type: ignore[operator]
    net = copy.deepcopy(net)
    for module in net.modules():
        last = isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d))
        if last or isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d)):
            module.side, module.cell = side, cell  # type: ignore[assignment]
            module.__class__ = _mixed(_OwnCell if last else _Cellwise, type(module))
    return net


def _check_disconnected(net: nn.Module, apart: nn.Module, images: Tensor, mosaic: Tensor, side: int, cell: int) -> None:
    """Raise ValueError if the disconnected net's logits for mosaics are not the net's for the images, or depend on another cell.

    Comparing logits is not enough: a leak is small where cells have black borders.
    """
    mosaic = mosaic.clone().requires_grad_()
    try:
        with torch.no_grad(), frozen(net):
            logits = net(images)
        with torch.enable_grad(), frozen(apart):
            found = apart(mosaic)
            # Unequal weights, so that no two classes cancel.
            (slopes,) = torch.autograd.grad((found * torch.linspace(1, 2, found.shape[-1]).to(found)).sum(), mosaic)
        tolerance = 1e-3 * float(logits[logits.isfinite()].abs().max()) if logits.isfinite().any() else 0.0
        height, width = (length // side for length in mosaic.shape[-2:])
        slopes = slopes.unflatten(3, (side, width)).unflatten(2, (side, height)).abs().sum((0, 1, 3, 5)).flatten()  # (side^2,)
        slopes[cell] = 0
        same = torch.allclose(found, logits, rtol=1e-3, atol=tolerance, equal_nan=True) and not slopes.nan_to_num().any()
    except RuntimeError:
        same = False
    if not same:
        raise ValueError(
            f"{type(net).__name__} cannot be disconnected for DiFull: between the convolutions and poolings of torch.nn, up to an adaptive "
            "pooling module, every operation must treat positions alike (no attention, no squeeze-and-excitation, no mean in forward)"
        )


@register_protocol(
    higher_is_better=True,
    range=(0, 1),
    asks="localised",
    passes=lambda methods, **_: shared_passes(methods) + Passes(2, 1),  # the net's logits for the image and for the mosaic are compared
    source="Rao et al., CVPR 2022",
)
def difull(model: nn.Module, methods: Sequence[Method], batch: Batch, prepared: Prepared, *, side: int = 2) -> Columns:
    """Score the fraction of the positive attribution in the only cell that the net is connected to, in [0, 1]; higher is better.

    The mosaics are those of :func:`grid_pointing_game`; each layer sees every cell separately, and the classifier only the cell of the
    image. Nothing outside it can affect the logit, so a correct map scores 1 whatever the net finds in the other images; a uniform map
    scores 1 / side^2. Any cell may be the image's, while the paper uses only corners.

    Args:
        model: a net of convolutions, see :func:`disconnected`.
        side: images per side of a mosaic, at least 2.

    Returns:
        By method name ``score`` (B,), NaN without positive attribution anywhere, and the ``cell`` (B,) of the image.

    Raises:
        ValueError: if ``side`` is below 2, for too few companions, for a net that cannot be disconnected, or a callable of the user's own.
    """
    as_whole("side", side, least=2)
    images, cells = mosaics(batch, side, methods[0].seed)
    scores = {method.name: torch.full((len(images),), torch.nan, dtype=torch.float64, device=images.device) for method in methods}
    for cell in cells.unique().tolist():
        rows = (cells == cell).nonzero()[:, 0]
        net = disconnected(model, side, cell)
        _check_disconnected(model, net, batch.images[rows], images[rows], side, cell)
        ids = [batch.image_ids[row] for row in rows.tolist()]
        maps = shared_maps([on_model(method, net) for method in methods], images[rows], batch.targets[rows], ids)
        for name, found in maps.items():
            scores[name][rows] = cell_share(found, cells[rows], side)
    return {name: {"score": score, "cell": cells} for name, score in scores.items()}
