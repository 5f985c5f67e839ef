"""BagNets (Brendel and Bethge, "Approximating CNNs with Bag-of-local-Features models works surprisingly well on ImageNet", ICLR 2019).

A ResNet in which most 3 x 3 convolutions are replaced by 1 x 1 ones, so that every output position sees only a 33 x 33 window. No
convolution pads, and the logits are the mean of the windows' logits, which are the intrinsic explanation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idsds.common.normalisation import IMAGENET
from idsds.models.base import register_model


class Block(nn.Module):
    """A bottleneck of 1 x 1, k x k (unpadded) and 1 x 1 convolutions; the shortcut is cropped at the bottom and right to match."""

    expansion = 4

    def __init__(self, channels: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel, stride=stride, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels != wide:
            self.downsample = nn.Sequential(nn.Conv2d(channels, wide, 1, stride=stride, bias=False), nn.BatchNorm2d(wide))

    def forward(self, x: Tensor, dilation: int | None = None) -> Tensor:
        """Apply the block; ``dilation`` replaces strides by a dilated k x k convolution, so that every pixel gets the same window."""
        stride = self.conv2.stride if dilation is None else (1, 1)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(F.conv2d(out, self.conv2.weight, stride=stride, dilation=dilation or 1)))
        out = self.bn3(self.conv3(out))
        shortcut = x
        if self.downsample is not None:
            convolution, norm = self.downsample
            shortcut = norm(F.conv2d(x, convolution.weight, stride=stride))
        height, width = out.shape[-2:]
        return self.relu(out + shortcut[..., :height, :width])


class BagNet(nn.Module):
    """Bag of local features, (B, 3, H, W) -> logits (B, K).

    Args:
        kernels: kernel size of the first block of each stage, 3 or 1 (other blocks use 1); this determines the window.
        cover: zero-pad the image at the bottom and right so that the last windows reach its border. Without it, up to one stride of rows
            and columns is never seen (the last 7 of 224 pixels in the published nets).
        stem_momentum: momentum of the stem's running statistics; 0.001, as in the published nets, is too slow for short training.
    """

    def __init__(
        self,
        num_classes: int,
        blocks: Sequence[int] = (3, 4, 6, 3),
        kernels: Sequence[int] = (3, 3, 3, 3),
        strides: Sequence[int] = (2, 2, 2, 1),
        width: int = 64,
        cover: bool = False,
        stem_momentum: float = 0.001,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width, momentum=stem_momentum)
        self.relu = nn.ReLU(inplace=True)
        channels = width
        self.window, self._dilations, jump = 3, [], 1
        for stage, (count, kernel, stride) in enumerate(zip(blocks, kernels, strides, strict=True)):
            stage_width = width * 2**stage
            layers = []
            for index in range(count):
                layers.append(Block(channels, stage_width, *((kernel, stride) if index == 0 else (1, 1))))
                channels = stage_width * Block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
            self._dilations.append([jump] + [jump * stride] * (count - 1))
            self.window += (kernel - 1) * jump
            jump *= stride
        self.stride, self.cover = jump, cover
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor, window_targets: Tensor | None = None) -> Tensor:
        """Return logits (B, K), or with ``window_targets`` (B,) the target logit of each pixel's window, (B, 1, H, W).

        For this dense map the image is zero-padded by half a window, so that pixel (r, c) stands for the window centred there, and the
        fully convolutional net runs once with strides turned into dilations. The result equals classifying H * W separate windows.
        """
        dense = window_targets is not None
        if dense:
            images = F.pad(images, [self.window // 2] * 4)
        elif self.cover:
            height, width = images.shape[-2:]
            images = F.pad(images, [0, (self.window - width) % self.stride, 0, (self.window - height) % self.stride])
        features = self.relu(self.bn1(self.conv2(self.conv1(images))))
        for stage, dilations in enumerate(self._dilations):
            for block, dilation in zip(getattr(self, f"layer{stage + 1}"), dilations, strict=True):
                features = block(features, dilation if dense else None)
        if window_targets is not None:
            maps = torch.einsum("bchw,bc->bhw", features, self.fc.weight[window_targets])
            return (maps + self.fc.bias[window_targets, None, None])[:, None]  # (B, 1, H, W)
        return self.fc(torch.mean(features, dim=(2, 3)))


SOURCE = "Brendel and Bethge, ICLR 2019"


@register_model(family="bagnet", normalisation=IMAGENET, intrinsic="BagNet", source=SOURCE)
def bagnet33(num_classes: int) -> nn.Module:
    """Windows of 33 pixels."""
    return BagNet(num_classes)


@register_model(
    family="bagnet",
    intrinsic="BagNet",
    num_classes=10,
    input_size=32,
    source=SOURCE,
    training={"epochs": 8, "lr": 1e-2},
)
def mini_bagnet(num_classes: int) -> nn.Module:
    """Build a net with 5-pixel windows, 0.63 of an 8-pixel patch; bagnet33's are 33 pixels, 0.59 of a 56-pixel patch."""
    return BagNet(num_classes, blocks=(1, 1), kernels=(3, 1), strides=(2, 1), width=24, cover=True, stem_momentum=0.1)
