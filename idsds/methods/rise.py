"""RISE: the probability of the target under random masks (Petsiuk et al., "RISE: Randomized Input Sampling for Explanation", BMVC 2018).

Masks are drawn on a coarse grid whose cells are kept with probability p, then upsampled and shifted. All images of one size share the
masks, as in the paper's and the reference's code; here they depend only on the seed. They are made in chunks, so memory does not grow
with their number.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from idsds.common.randomness import Draws, generator
from idsds.methods.base import Passes, register_method
from idsds.methods.gradient import path_start
from idsds.models.quantity import plain_logits


def interpolation(cells: int, pixels: int) -> Tensor:
    """Return the weights of linear interpolation, (pixels, cells), float64.

    Pixel i reads the grid at u = (i + 1/2) cells / pixels - 1/2. Beyond the centres of the border cells, u is mirrored, as in
    scikit-image's ``resize(order=1, mode="reflect")``, which the paper's code uses; torch would replicate the border instead.
    """
    u = (torch.arange(pixels, dtype=torch.float64) + 0.5) * cells / pixels - 0.5
    if cells == 1:
        return torch.ones(pixels, 1, dtype=torch.float64)
    u = u.abs()
    u = (cells - 1) - ((cells - 1) - u).abs()
    low = u.floor().clamp(max=cells - 2).long()
    weights = torch.zeros(pixels, cells, dtype=torch.float64)
    weights.scatter_(1, low[:, None], (low + 1 - u)[:, None])
    return weights.scatter_add_(1, low[:, None] + 1, (u - low)[:, None])


def cell_size(height: int, width: int, cells: int) -> tuple[int, int]:
    """Return a cell's height and width in pixels: side / cells, rounded up."""
    return -(-height // cells), -(-width // cells)


def rise_masks(grids: Tensor, shifts: Tensor, height: int, width: int) -> Tensor:
    """Turn binary grids into smooth masks.

    Args:
        grids: (N, s, s), 1 where the image is shown.
        shifts: (N, 2) integers, rows and columns, in [0, :func:`cell_size`).

    Returns:
        (N, 1, height, width) float32 in [0, 1]: each grid upsampled to (s + 1) cells a side and cropped at its shift.
    """
    cells = grids.shape[-1]
    sides = []
    for pixels, cell, shift in zip((height, width), cell_size(height, width, cells), shifts.T, strict=True):
        window = shift[:, None] + torch.arange(pixels, device=shifts.device)  # (N, pixels)
        sides.append(interpolation(cells, (cells + 1) * cell).float().to(grids.device)[window])  # (N, pixels, s)
    rows, columns = sides
    return (rows @ grids.float() @ columns.mT)[:, None]


def random_masks(seed: int, samples: int, cells: int, probability: float, images: Tensor) -> Callable[[int, int], Tensor]:
    """Return a function that makes masks ``start`` to ``stop``, on the device and in the dtype of ``images``."""
    height, width = images.shape[-2:]
    source = generator(seed, "RISE", samples, cells, probability, height, width)
    grids = (torch.rand(samples, cells, cells, generator=source) < probability).to(images.device)
    sizes = torch.tensor(cell_size(height, width, cells))
    shifts = (torch.rand(samples, 2, generator=source) * sizes).long().to(images.device)
    return lambda start, stop: rise_masks(grids[start:stop], shifts[start:stop], height, width).to(images.dtype)


@register_method(
    "RISE",
    family="perturbation",
    variants={
        "RISE-U": {"baseline": "uniform"},
        "RISE (paper)": {"samples": 8000, "cells": 7, "probability": 0.5},  # as for the paper's ResNet-50
    },
    passes=lambda model, samples, masks=None, **_: Passes(samples if masks is None else len(masks)),
    noise="RISE",
    explains_not={"contrast": "it weighs its masks by the probability"},
    source="Petsiuk et al., BMVC 2018",
)
@torch.inference_mode()
def rise(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    samples: int = 1000,
    cells: int = 8,
    probability: float = 0.1,
    baseline: str | Tensor = "zeros",
    masks: Tensor | None = None,
    draws: Draws,
    batch: int,
) -> Tensor:
    """Return sum_n P(target | m_n x + (1 - m_n) baseline) m_n / (N p), with softmax probabilities P.

    The defaults are the reference's: a tenth of the cells is shown, while the paper shows half of 7 x 7 cells (``RISE (paper)``).

    Args:
        samples: number of masks, N.
        probability: p, the probability that a cell is shown.
        baseline: replaces hidden pixels, see :func:`idsds.methods.gradient.path_start`; ``RISE-U``: one fixed image, uniform in [-1, 1].
        masks: (N, 1, H, W) or (N, H, W), used instead of random ones.
    """
    if masks is None:
        count, masks_of = samples, random_masks(draws.seed, samples, cells, probability, images)
    else:
        given = masks[:, None] if masks.ndim == 3 else masks
        if given.ndim != 4 or given.shape[1] != 1 or given.shape[-2:] != images.shape[-2:]:
            raise ValueError(f"RISE: masks have shape {tuple(given.shape)}, wanted (N, 1, {images.shape[-2]}, {images.shape[-1]})")
        count, masks_of = len(given), lambda start, stop: given[start:stop].to(images)
    hidden = path_start(baseline, model, draws).expand_as(images)
    maps = torch.zeros_like(images[:, 0]).flatten(1)  # (B, H * W)
    # Few images: many masks of each per pass. Many images: one mask on as many as fit.
    together = min(len(images), batch)
    step = max(1, batch // together)
    # Only the model runs under autocast: 16 bits would round the masks and leave the map two or three digits.
    exact = partial(torch.autocast, images.device.type, enabled=False)
    for start in range(0, count, step):
        with exact():
            chunk = masks_of(start, start + step)  # (n, 1, H, W)
        for first in range(0, len(images), together):
            some = slice(first, first + together)
            masked = torch.lerp(hidden[some, None], images[some, None], chunk)  # (b, n, C, H, W)
            with plain_logits():
                logits = model(masked.flatten(0, 1)).to(images.dtype)
            probabilities = logits.softmax(dim=1).unflatten(0, masked.shape[:2])  # (b, n, K)
            chances = probabilities.gather(2, targets[some, None, None].expand(-1, len(chunk), -1))[..., 0]  # (b, n)
            with exact():
                maps[some] += chances @ chunk.flatten(1)
    return maps.view(-1, *images.shape[-2:]) / (count * probability)
