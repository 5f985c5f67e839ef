"""The normalisation that a model expects of its input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalisation:
    """From images in [0, 1] to a model's input: ``(images - mean) / std`` per channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images (..., 3, H, W) in [0, 1]."""
        return (images - self._column(self.mean, images)) / self._column(self.std, images)

    def invert(self, images: Tensor) -> Tensor:
        """Return normalised images (..., 3, H, W) to [0, 1], for display."""
        return images * self._column(self.std, images) + self._column(self.mean, images)

    @staticmethod
    def _column(values: tuple[float, float, float], images: Tensor) -> Tensor:
        return torch.tensor(values, dtype=images.dtype, device=images.device).view(3, 1, 1)


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
UNIT = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def as_normalisation(given: Any) -> Normalisation | None:
    """Convert a normalisation, ``(mean, std)`` (one number per channel or one for all) or one of torchvision's transforms.

    Raises:
        TypeError, ValueError: for anything else, naming it; None stays None.
    """
    if given is None or isinstance(given, Normalisation):
        return given
    stated = [getattr(given, name, None) for name in ("mean", "std")]
    pair = given if any(each is None for each in stated) or any(map(callable, stated)) else stated  # arrays have methods of these names
    try:
        mean, std = (torch.as_tensor(values, dtype=torch.float64).flatten().tolist() for values in pair)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"normalisation must be (mean, std), each with a number per channel, not {given!r}") from error
    mean, std = (tuple(values * 3 if len(values) == 1 else values) for values in (mean, std))
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, mean)) or not all(0 < value < math.inf for value in std):
        raise ValueError(f"normalisation must be (mean, std) of three channels, std above 0, not {given!r}")
    return Normalisation(mean, std)
