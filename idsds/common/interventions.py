"""Deletion of patches: the grid, the baselines that replace deleted pixels, and the deletion itself.

It happens in the model's normalised input space, as in the paper: the baseline ``zeros`` is the mean colour of the data for a
model that subtracts the mean, mid grey for the ViT's 0.5/0.5, and black for B-cos, whose input is in [0, 1].

Source: Hesse, Schaub-Meyer, Roth, "Benchmarking the Attribution Quality of Vision Models", NeurIPS 2024 (arXiv 2407.11910).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from idsds.common.numbers import as_whole
from idsds.common.randomness import Draws
from idsds.common.registry import Registry

Baseline = Callable[[Tensor, Draws], Tensor]

# The blur of the reference at 224 pixels. Its exponent is -((x - mean) / (2 * sigma))^2, so the standard deviation is sqrt(2) * sigma.
BLUR_PIXELS, BLUR_TAPS, BLUR_SIGMA = 224, 51, 41.0


class _Baselines(Registry[Baseline]):
    """The baselines, among them every ``blur KERNEL SIGMA``."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and name.startswith("blur ") and _blur_of(name) is not None)

    def __getitem__(self, name: str) -> Baseline:
        if isinstance(name, str) and name.startswith("blur "):
            if (blur_of := _blur_of(name)) is None:
                raise ValueError(
                    f"baseline {name!r}: write 'blur KERNEL SIGMA', an odd kernel of at least 3 taps and a sigma above 0, both of an "
                    f"image of {BLUR_PIXELS} pixels; 'blur' is 'blur {BLUR_TAPS} {BLUR_SIGMA:g}'"
                )
            return blur_of
        return super().__getitem__(name)


BASELINES: Registry[Baseline] = _Baselines("baseline")


def as_baseline(name: str) -> str:
    """Return the name of a baseline. Raises UnknownNameError, or another ValueError for a kernel or sigma out of range."""
    BASELINES[name]
    return name


def _blur_of(name: str) -> Baseline | None:
    """Return the baseline of ``blur KERNEL SIGMA``, None for other names and for values out of range."""
    found = re.fullmatch(r"blur (\d+) (\d+(?:\.\d+)?)", name)
    if found is None or int(found[1]) < 3 or int(found[1]) % 2 == 0 or float(found[2]) == 0:
        return None
    return partial(blur, taps=int(found[1]), sigma=float(found[2]))


def list_baselines() -> list[str]:
    """Return the names of the baselines, for ``baseline=``."""
    return list(BASELINES)


def patch_size(height: int, width: int, grid: int) -> tuple[int, int]:
    """Return the height and width, in pixels, of a patch of a ``grid`` x ``grid`` grid.

    Raises:
        ValueError: if the grid does not divide the image. (The reference leaves out the remaining pixels instead.)
    """
    grid = as_whole("grid", grid)
    if height % grid or width % grid:
        fits = [g for g in range(2, 17) if height % g == 0 and width % g == 0]
        nearest = min(fits, key=lambda g: (abs(g - grid), g), default=1)
        raise ValueError(f"grid {grid} does not divide images of {height} x {width} pixels; allowed up to 16: {fits}, nearest: {nearest}")
    return height // grid, width // grid


def baseline_images(images: Tensor, baseline: str = "zeros", *, seed: int = 0, image_ids: Sequence[object] | None = None) -> Tensor:
    """Return the pixels that replace deleted ones.

    Args:
        images: float (B, C, H, W), normalised.
        baseline: ``zeros``, ``blur``, ``blur KERNEL SIGMA`` (such as ``blur 25 10``) or ``uniform`` (noise in [-1, 1], drawn per image
            and keyed by its id).
        seed: of the ``uniform`` baseline.
        image_ids: one id per image, which keys the noise.

    Returns:
        (B, C, H, W) in the space of ``images``.

    Raises:
        UnknownNameError: for an unknown baseline, with the nearest match.
    """
    return BASELINES[baseline](images, Draws(seed, f"baseline {baseline}", images, image_ids))


def delete_patches(images: Tensor, replacement: Tensor, patches: Tensor, grid: int = 4) -> Tensor:
    """Replace one patch of each image.

    Args:
        images: (B, C, H, W).
        replacement: (B, C, H, W), from :func:`baseline_images`.
        patches: (B,) integers in [0, grid * grid), row-major; -1 leaves an image as it is.

    Returns:
        (B, C, H, W), a new tensor.
    """
    return torch.where(_patch_mask(images, patches, grid), replacement, images)


def all_deletions(images: Tensor, replacement: Tensor, grid: int = 4, offset: int = 0) -> Tensor:
    """Delete each patch of every image in turn, (B, C, H, W) -> (B, n, C, H, W), patches row-major; n as for :func:`shifted`."""
    (rows, columns), side = shifted(*images.shape[-2:], grid, offset)
    n = side * side
    inner = images[:1, :, rows, columns].expand(n, -1, -1, -1)
    mask = torch.zeros((n, 1, *images.shape[-2:]), dtype=torch.bool, device=images.device)
    mask[:, :, rows, columns] = _patch_mask(inner, torch.arange(n, device=images.device), side)
    return torch.where(mask, replacement[:, None], images[:, None])


def shifted(height: int, width: int, grid: int, offset: int) -> tuple[tuple[slice, slice], int]:
    """Return what the patches of a grid cover when it is moved right and down by ``offset`` pixels, and how many there are per side.

    The patches keep their size. Those that would reach beyond the border are left out, so that there are ``grid - 1`` per side.

    Raises:
        ValueError: if the offset is not a whole number in [0, patch size), or no patch is left.
    """
    sides, offset = patch_size(height, width, grid), as_whole("offset", offset, least=0)
    if not offset:
        return (slice(0, height), slice(0, width)), grid
    if offset >= min(sides) or grid == 1:
        raise ValueError(f"offset must be below the side of a patch of a grid of at least 2, here {min(sides)} of {grid}, not {offset}")
    rows, columns = (slice(offset, offset + side * (grid - 1)) for side in sides)
    return (rows, columns), grid - 1


def patch_numbers(images: Tensor, grid: int) -> Tensor:
    """Return the number of each pixel's patch, row-major, (H, W). Raises ValueError if the grid does not divide the image."""
    height, width = images.shape[-2:]
    cell_height, cell_width = patch_size(height, width, grid)
    rows = torch.arange(height, device=images.device) // cell_height
    columns = torch.arange(width, device=images.device) // cell_width
    return rows[:, None] * grid + columns


def grid_of(mask: object) -> dict[str, Any] | None:
    """Return the ``grid`` and ``offsets`` whose patches are features of a mask (..., H, W), such as captum's; None if there are none."""
    if not isinstance(mask, Tensor) or mask.ndim < 2 or (mask != mask.flatten(0, -3)[:1] if mask.ndim > 2 else mask != mask).any():
        return None
    mask = mask.flatten(0, -3)[0] if mask.ndim > 2 else mask
    (height, width), inside = mask.shape, (mask == mask[mask.shape[0] // 2, mask.shape[1] // 2]).nonzero()
    (top, left), (rows, columns) = inside.amin(0).tolist(), (inside.amax(0) - inside.amin(0) + 1).tolist()
    grid, offset = height // rows, top % rows
    if (grid * rows, grid * columns) != (height, width) or grid < 2 or left % columns != offset:
        return None
    (covered, across), side = shifted(height, width, grid, offset)
    inner = mask[covered, across]
    pairs = torch.stack([inner.flatten(), patch_numbers(inner, side).flatten()]).unique(dim=1)
    labels = pairs[0].unique()
    one_to_one = pairs.shape[1] == len(labels) == side * side and int(torch.isin(mask, labels).sum()) == inner.numel()
    return {"grid": grid, "offsets": [offset]} if one_to_one else None


def on_grid(queried: Mapping[str, Any] | None, size: Sequence[int]) -> Mapping[str, Any] | None:
    """Return the deletions that a method queries on images (C, H, W) by ``grid`` and ``offsets``.

    Args:
        queried: ``baseline`` and either the ``grid`` (and ``offsets``, otherwise 0) or a ``window`` (C, h, w) with its ``strides``
            (vertical, horizontal); None if it queries none.
        size: C, H and W.

    Returns:
        ``grid``, ``offsets`` and ``baseline``; None for a window that never coincides with a patch of a grid.
    """
    if queried is None or "window" not in queried:
        return queried
    (channels, *window), strides = queried["window"], queried["strides"]
    if len(window) != 2 or len(strides) != 2 or not all(isinstance(side, int) and side > 0 for side in (*window, *strides)):
        return None  # the library raises
    grid = size[1] // window[0]
    if channels != size[0] or [grid * side for side in window] != list(size[1:]) or grid < 2 or any(map(int.__mod__, window, strides)):
        return None
    offsets = [offset for offset in range(min(window)) if not any(offset % stride for stride in strides)]
    return {"grid": grid, "offsets": offsets, "baseline": queried["baseline"]}


def _patch_mask(images: Tensor, patches: Tensor, grid: int) -> Tensor:
    """Return a mask that is True inside the patch of each image, (B, 1, H, W)."""
    return (patch_numbers(images, grid) == patches.to(images.device)[:, None, None])[:, None]


def _baseline(function: Baseline) -> Baseline:
    BASELINES.add(function.__name__, function)
    return function


@_baseline
def zeros(images: Tensor, draws: Draws) -> Tensor:
    """Return zeros in normalised space: the mean colour of the data if the model subtracts the mean."""
    return torch.zeros_like(images)


@_baseline
def blur(images: Tensor, draws: Draws, taps: int = BLUR_TAPS, sigma: float = BLUR_SIGMA) -> Tensor:
    """Blur like the reference (zero padding, its sigma) at 224 pixels; for other sizes the kernel scales with the image's height."""
    scale = images.shape[-2] / BLUR_PIXELS
    radius = max(1, round((taps // 2) * scale))
    position = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (position / (2**0.5 * sigma * scale)) ** 2)
    kernel = (kernel / kernel.sum()).to(images)
    channels = images.shape[1]
    # A Gaussian is separable: two passes of 51 taps replace one of 2601.
    rows = F.conv2d(images, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), padding=(radius, 0), groups=channels)
    return F.conv2d(rows, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), padding=(0, radius), groups=channels)


@_baseline
def uniform(images: Tensor, draws: Draws) -> Tensor:
    """Return noise in [-1, 1], drawn per image. (The reference draws it again for each patch, from the global generator.)"""
    return 2 * draws.uniform(1)[:, 0] - 1
