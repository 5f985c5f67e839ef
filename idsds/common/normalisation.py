"""The normalisation that a model expects of its input."""

from __future__ import annotations

from dataclasses import dataclass

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
