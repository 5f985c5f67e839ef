"""Residual networks (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016), and wide ones (Zagoruyko and Komodakis,
"Wide Residual Networks", BMVC 2016).

The ``mini_*`` nets follow the first paper's variant for 32 x 32 pixels (section 4.2), built from torchvision's blocks: a 3 x 3 stem and
three stages of 16, 32 and 64 channels with n basic blocks each, 6 n + 2 layers in all. Here the stem has stride 2, as in the full-size
nets, which takes a quarter of the time and gives a CAM layer of 4 x 4 positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1, conv3x3

from idsds.models.base import register_model
from idsds.models.pretrained import register_torchvision

RESNET, WIDE_RESNET = "He et al., CVPR 2016", "Zagoruyko and Komodakis, BMVC 2016"


class MiniResNet(nn.Module):
    """A ResNet for 32 x 32 pixels, (B, 3, 32, 32) -> logits (B, K).

    Args:
        blocks: basic blocks per stage, n.
    """

    def __init__(self, num_classes: int, blocks: int, width: int = 16) -> None:
        super().__init__()
        self.conv1 = conv3x3(3, width, stride=2)
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
        features = self.relu(self.bn1(self.conv1(images)))  # (B, 16, 16, 16)
        features = self.layer3(self.layer2(self.layer1(features)))  # (B, 64, 4, 4)
        return self.fc(torch.flatten(self.avgpool(features), 1))


def _register_mini(depth: int) -> None:
    @register_model(
        f"mini_resnet{depth}", family="resnet", cam_layer="layer3", num_classes=10, input_size=32, source=f"{RESNET}, section 4.2"
    )
    def build(num_classes: int) -> nn.Module:
        return MiniResNet(num_classes, blocks=(depth - 2) // 6)


for _name in ("resnet18", "resnet50", "resnet101", "resnet152"):
    register_torchvision(_name, family="resnet", cam_layer="layer4", source=RESNET)
register_torchvision("wide_resnet50_2", family="resnet", cam_layer="layer4", source=WIDE_RESNET)
for _depth in (8, 14, 20, 32):
    _register_mini(_depth)


@register_model(family="resnet", cam_layer="layer3", num_classes=10, input_size=32, source=WIDE_RESNET)
def mini_wide_resnet8(num_classes: int) -> nn.Module:
    """Build mini_resnet8 with twice the channels."""
    return MiniResNet(num_classes, blocks=1, width=32)
