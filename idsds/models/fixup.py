"""Residual networks without normalisation layers.

Fixup (Zhang, Dauphin and Ma, "Fixup Initialization: Residual Learning Without Normalization", ICLR 2019) replaces BatchNorm in every
block by scalar biases and one scalar multiplier. The X-ResNet (Hesse, Schaub-Meyer and Roth, "Fast Axiomatic Attribution for Neural
Networks", NeurIPS 2021) drops every bias of such a net, so that it is homogeneous, f(a x) = a f(x) for a > 0, and input x gradient equals
integrated gradients from zero. One class implements both; keys and shapes match the authors' checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from idsds.common.normalisation import IMAGENET
from idsds.models.base import register_model

FIXUP, X_DNN = "Zhang, Dauphin and Ma, ICLR 2019", "Hesse, Schaub-Meyer and Roth, NeurIPS 2021"


class Block(nn.Module):
    """A residual block without normalisation: a scalar bias before every convolution and every ReLU, one multiplier at the end.

    Args:
        scalars: whether the block has Fixup's biases and multiplier; without them it is bias-free.
        bottleneck: whether to use 1 x 1, 3 x 3 and 1 x 1 convolutions with a fourfold expansion at the end instead of two 3 x 3 ones.
    """

    def __init__(self, channels: int, width: int, stride: int, *, scalars: bool, bottleneck: bool) -> None:
        super().__init__()
        self.kernels = (1, 3, 1) if bottleneck else (3, 3)
        strided = self.kernels.index(3)
        out = width * 4 if bottleneck else width
        for index, kernel in enumerate(self.kernels):
            last = index == len(self.kernels) - 1
            convolution = nn.Conv2d(
                channels if index == 0 else width,
                out if last else width,
                kernel,
                stride=stride if index == strided else 1,
                padding=kernel // 2,
                bias=False,
            )
            self.add_module(f"conv{index + 1}", convolution)
            for name in (f"bias{index + 1}a", *(["scale"] if last else []), f"bias{index + 1}b"):
                self.register_parameter(name, nn.Parameter(torch.full((1,), float(name == "scale"))) if scalars else None)
        # One ReLU module per use, so that methods that hook ReLUs can tell them apart.
        self.relus = nn.ModuleList(nn.ReLU(inplace=True) for _ in self.kernels)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Conv2d(channels, out, 1, stride=stride, bias=False)

    def convolutions(self) -> list[nn.Conv2d]:
        """Return the convolutions of the residual branch, in order."""
        return [self.get_submodule(f"conv{index + 1}") for index in range(len(self.kernels))]  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        shifted = out = add(x, self.bias1a)
        for index, convolution in enumerate(self.convolutions(), start=1):
            out = convolution(out if index == 1 else add(out, getattr(self, f"bias{index}a")))
            if index < len(self.kernels):
                out = self.relus[index - 1](add(out, getattr(self, f"bias{index}b")))
        if self.scale is not None:
            out = out * self.scale
        out = add(out, getattr(self, f"bias{len(self.kernels)}b"))
        return self.relus[-1](out + (x if self.downsample is None else self.downsample(shifted)))


def add(x: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x + bias``, or ``x`` without a bias."""
    return x if bias is None else x + bias


class NormFreeResNet(nn.Module):
    """A ResNet without normalisation, (B, 3, H, W) -> logits (B, K).

    Args:
        scalars: whether the net has Fixup's scalar biases and multipliers and a classifier bias; without them it is bias-free.
        bottleneck: whether to use bottleneck blocks instead of basic ones.
        small_inputs: whether to use a 3 x 3 stem with stride 2, for 32 x 32 pixels, instead of 7 x 7 with stride 2 and pooling.
    """

    def __init__(
        self,
        num_classes: int,
        blocks: Sequence[int] = (3, 4, 6, 3),
        *,
        scalars: bool,
        bottleneck: bool = True,
        width: int = 64,
        small_inputs: bool = False,
    ) -> None:
        super().__init__()
        for name in ("bias1", "bias2"):
            self.register_parameter(name, nn.Parameter(torch.zeros(1)) if scalars else None)
        kernel = 3 if small_inputs else 7
        self.conv1 = nn.Conv2d(3, width, kernel, stride=2, padding=kernel // 2, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_inputs else nn.MaxPool2d(3, stride=2, padding=1)
        channels, self.stages = width, len(blocks)
        for stage, count in enumerate(blocks):
            layers = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(Block(channels, width * 2**stage, stride, scalars=scalars, bottleneck=bottleneck))
                channels = width * 2**stage * (4 if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes, bias=scalars)
        self._initialise(sum(blocks))

    def _initialise(self, total: int) -> None:
        """Apply He initialisation times L^(-1 / (2 m - 2)) in the m convolutions of each of L branches, and zeros in the last.

        The paper also zeroes the classifier. Here it keeps torch's default, so that an untrained net depends on its input.
        """
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        for block in (module for module in self.modules() if isinstance(module, Block)):
            *inner, last = block.convolutions()
            for convolution in inner:
                nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
                with torch.no_grad():
                    convolution.weight *= total ** (-1 / (2 * len(inner)))
            nn.init.zeros_(last.weight)
            if block.downsample is not None:
                nn.init.kaiming_normal_(block.downsample.weight, mode="fan_out", nonlinearity="linear")

    def forward(self, images: Tensor) -> Tensor:
        features = self.maxpool(self.relu(add(self.conv1(images), self.bias1)))
        for stage in range(self.stages):
            features = self.get_submodule(f"layer{stage + 1}")(features)
        return self.fc(add(torch.flatten(self.avgpool(features), 1), self.bias2))


@register_model(family="fixup", normalisation=IMAGENET, cam_layer="layer4", source=FIXUP)
def fixup_resnet50(num_classes: int) -> nn.Module:
    return NormFreeResNet(num_classes, scalars=True)


@register_model(family="fixup", normalisation=IMAGENET, cam_layer="layer4", source=X_DNN)
def x_resnet50(num_classes: int) -> nn.Module:
    return NormFreeResNet(num_classes, scalars=False)


def _mini(num_classes: int, scalars: bool) -> nn.Module:
    return NormFreeResNet(num_classes, (1, 1, 1), scalars=scalars, bottleneck=False, width=16, small_inputs=True)


@register_model(family="fixup", cam_layer="layer3", num_classes=10, input_size=32, source=FIXUP, training={"epochs": 8})
def mini_fixup_resnet8(num_classes: int) -> nn.Module:
    """Build mini_resnet8 without BatchNorm."""
    return _mini(num_classes, scalars=True)


@register_model(family="fixup", cam_layer="layer3", num_classes=10, input_size=32, source=X_DNN, training={"epochs": 8})
def mini_x_resnet8(num_classes: int) -> nn.Module:
    """Build mini_resnet8 without BatchNorm and without any bias."""
    return _mini(num_classes, scalars=False)
