"""Nets and targets for the methods of libraries."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tests.methods.nets import ConvNet, seeded

EXTRAS = {"zennit": "zennit", "gradcam": "pytorch_grad_cam", "saliency": "saliency"}


TARGETS = torch.tensor([1, 7])


def needs(library: str) -> None:
    if library in EXTRAS:
        pytest.importorskip(EXTRAS[library])


def net_of_modules() -> nn.Sequential:
    """Every ReLU is a module of its own, as captum wants it; the weights are those of :func:`seeded` ``ConvNet``."""
    net = seeded(ConvNet)
    return nn.Sequential(net.conv1, nn.ReLU(), net.conv2, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.fc).eval()


def small_vit(height: int = 16, width: int = 16) -> nn.Module:
    """torchvision's, of two blocks."""
    options = {"patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32, "num_classes": 10}
    net = seeded(torchvision.models.VisionTransformer, image_size=16, **options)
    nn.init.normal_(net.heads.head.weight)
    return net


class Last(nn.Module):
    """A layer of as many channels as rows, which are last: read in the wrong order it would not be noticed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 1), nn.LayerNorm(8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x).permute(0, 2, 3, 1)).relu().mean((1, 2)))
