"""Controls, which ignore the model. A useful method scores above them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idsds.common.randomness import Draws
from idsds.methods.base import Passes, register_method


@register_method("Random", family="control", passes=Passes(0), source="this package")
def random(model: nn.Module, images: Tensor, targets: Tensor, *, draws: Draws) -> Tensor:
    """Draw standard normal noise, keyed by the image's id."""
    return draws.normal(1)[:, 0, :1]


@register_method("Edges", family="control", passes=Passes(0), source="Sobel and Feldman, 1968; as a control: Adebayo et al., NeurIPS 2018")
def edges(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return the magnitude of the image's Sobel gradient over both directions and all channels, (B, H, W).

    The filter is [1, 2, 1] / 4 across and [-1, 0, 1] / 2 along the direction, in the image's units per pixel, with replicated borders.
    """
    smooth = torch.tensor([1.0, 2.0, 1.0], dtype=images.dtype, device=images.device) / 4
    slope = torch.tensor([-1.0, 0.0, 1.0], dtype=images.dtype, device=images.device) / 2
    kernels = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)])[:, None]  # (2, 1, 3, 3): along columns, along rows
    batch, channels, height, width = images.shape
    padded = F.pad(images.reshape(batch * channels, 1, height, width), (1, 1, 1, 1), mode="replicate")
    slopes = F.conv2d(padded, kernels).view(batch, channels * 2, height, width)
    return slopes.square().sum(dim=1).sqrt()


@register_method("Center", family="control", passes=Passes(0), source="this package")
def center(model: nn.Module, images: Tensor, targets: Tensor, *, sigma: float = 0.25) -> Tensor:
    """Return a Gaussian centred on the image, (B, H, W), with peak 1; ``sigma`` is a fraction of the height and of the width."""
    height, width = images.shape[-2:]
    sides = []
    for pixels in (height, width):
        distance = (torch.arange(pixels, dtype=torch.float64) + 0.5) / pixels - 0.5
        sides.append(torch.exp(-0.5 * (distance / sigma) ** 2))
    return torch.outer(*sides).to(images).expand(len(images), height, width)
