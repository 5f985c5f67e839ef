"""Residual networks (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016).

The ``mini_*`` nets are the paper's own 32 x 32 variant (its section 4.2): a 3 x 3 stem, three stages of 16, 32 and 64 channels with
n basic blocks each, 6 n + 2 layers, built from torchvision's blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1, conv3x3

from idsds.models.base import register_model


class MiniResNet(nn.Module):
    """A ResNet for 32 x 32 pixels, (B, 3, 32, 32) -> logits (B, K).

    Args:
        num_classes: K.
        blocks: basic blocks per stage, n.
        width: channels of the first stage.
    """

    def __init__(self, num_classes: int, blocks: int, width: int = 16) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(width, width, blocks, stride=1)
        self.layer2 = self._stage(width, 2 * width, blocks, stride=2)
        self.layer3 = self._stage(2 * width, 4 * width, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        shortcut = None
        if stride != 1 or channels != width:
            shortcut = nn.Sequential(conv1x1(channels, width, stride), nn.BatchNorm2d(width))
        first = BasicBlock(channels, width, stride, shortcut)
        return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.bn1(self.conv1(images)))  # (B, 16, 32, 32)
        features = self.layer3(self.layer2(self.layer1(features)))  # (B, 64, 8, 8)
        return self.fc(torch.flatten(self.avgpool(features), 1))


def _register_mini(depth: int) -> None:
    @register_model(
        f"mini_resnet{depth}",
        family="resnet",
        cam_layer="layer3",
        num_classes=10,
        input_size=32,
        source="He et al., CVPR 2016, section 4.2",
    )
    def build(num_classes: int) -> nn.Module:
        return MiniResNet(num_classes, blocks=(depth - 2) // 6)


for _depth in (8, 14, 20, 32):
    _register_mini(_depth)
