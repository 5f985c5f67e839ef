"""What goes into a method and what comes out: batches that are checked, and results as maps of one shape."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from idsds.common.randomness import Draws

#: Whether a map is the sum over the channels, or has those that the method gives: 3, or 1 for a CAM.
Channels = Literal["summed", "each"]


def as_map(name: str, value: object, images: Tensor, draws: Draws | None = None, channels: Channels = "summed") -> Tensor:
    """Return a method's result as (B, 1, H, W): summed over channels, detached, on the images' device, in their dtype or a wider one.

    Raises:
        TypeError: if it is not a tensor of real numbers.
        ValueError: if its shape does not match the images.

    Warns:
        RuntimeWarning: for NaN or infinite values in the maps of some images, which are named; the values are kept.
    """
    value, draws = as_tensor(value), draws or Draws(0, name, images)
    batch, _, height, width = images.shape
    if not is_map(value, images):
        explained = f" for {listed(draws.image_ids)}"
        if not isinstance(value, Tensor):
            raise TypeError(f"method {name!r} returned {type(value).__name__}{explained}, not a tensor of attributions")
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"method {name!r} returned values of {value.dtype}{explained}, not of real numbers")
        wanted = f"({batch}, C, {height}, {width}) or ({batch}, {height}, {width})"
        raise ValueError(f"method {name!r} returned shape {tuple(value.shape)}{explained}; wanted {wanted}")
    value = value[:, None] if value.ndim == 3 else value
    maps = value.detach().to(images.device, torch.promote_types(value.dtype, images.dtype))
    maps = maps.sum(dim=1, keepdim=True) if channels == "summed" else maps
    undefined = ~maps.isfinite().flatten(1).all(dim=1)  # (B,)
    if undefined.any():
        ids = [i for i, bad in zip(draws.image_ids, undefined.tolist(), strict=True) if bad]
        which = listed(ids).removeprefix("the images ")
        warnings.warn(f"method {name!r} gave a NaN or an infinity for {len(ids)} of {batch} images: {which}", RuntimeWarning, stacklevel=2)
    return maps


def listed(image_ids: Sequence[str]) -> str:
    """Return up to eight image ids, for a message."""
    return f"the images {', '.join(image_ids[:8])}{', ...' if len(image_ids) > 8 else ''}"


def as_tensor(value: object) -> object:
    """Return a numeric numpy array, or a list of arrays or tensors of one shape, as a tensor; anything else unchanged."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        return torch.from_numpy(np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="), copy=False)))
    if isinstance(value, (list, tuple)) and value and all(isinstance(part, (np.ndarray, Tensor)) for part in value):
        parts = [as_tensor(part) for part in value]
        if all(isinstance(part, Tensor) for part in parts) and len({part.shape for part in parts}) == 1:  # type: ignore[attr-defined]
            return parts[0] if len(parts) == 1 and parts[0].ndim > 3 else torch.stack(parts)  # type: ignore[attr-defined, arg-type]
    return value


def is_map(value: object, images: Tensor) -> bool:
    """Return whether a value has the shape and type of attributions of these images."""
    if not isinstance(value, Tensor) or value.is_complex() or value.dtype == torch.bool:
        return False
    spatial = value.ndim == 3 or (value.ndim == 4 and value.shape[1] > 0)
    return spatial and len(value) == len(images) and value.shape[-2:] == images.shape[-2:]


def check_batch(images: Tensor, targets: Tensor, image_ids: Sequence[object] | None = None) -> None:
    """Raise TypeError or ValueError, which names the input, unless it is a batch of images with one target each."""
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.ndim != 4:
        given = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a float tensor (B, C, H, W), not {given}")
    if not isinstance(targets, Tensor) or targets.dtype not in (torch.int64, torch.int32) or targets.ndim != 1:
        given = f"{targets.dtype} {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        raise TypeError(f"targets must be an integer tensor (B,), not {given}")
    if len(targets) != len(images) or (image_ids is not None and len(image_ids) != len(images)):
        ids = "" if image_ids is None else f" and {len(image_ids)} image ids"
        raise ValueError(f"{len(images)} images with {len(targets)} targets{ids}: one target and one id per image, please")
    if not len(images):
        raise ValueError(f"there is nothing to explain: images have shape {tuple(images.shape)}")
