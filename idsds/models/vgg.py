"""VGG nets (Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015), with BatchNorm or
without any bias (Hesse, Schaub-Meyer and Roth, "Fast Axiomatic Attribution for Neural Networks", NeurIPS 2021).

The ``mini_*`` nets are torchvision's class with an eighth of the channels, three poolings instead of five (so that ``features`` ends
in 4 x 4 positions for 32 x 32 pixels) and a small classifier.
"""

from __future__ import annotations

import torchvision
from torch import nn
from torchvision.models.vgg import VGG, make_layers

from idsds.common.normalisation import IMAGENET
from idsds.models.base import register_model
from idsds.models.pretrained import register_torchvision

VGG_PAPER, X_DNN = "Simonyan and Zisserman, ICLR 2015", "Hesse, Schaub-Meyer and Roth, NeurIPS 2021"

# Dropout slows training down, so it takes more epochs than the standard recipe.
MINI_TRAINING = {"epochs": 4}
# As many convolutions as the full-size net of the same name, with fewer poolings.
MINI_LAYERS: dict[int, list[str | int]] = {
    11: [16, "M", 32, "M", 48, 48, "M", 64, 64, 64, 64],
    13: [16, 16, "M", 32, 32, "M", 48, 48, "M", 64, 64, 64, 64],
    16: [16, 16, "M", 32, 32, "M", 48, 48, 48, "M", 64, 64, 64, 64, 64, 64],
}


class MiniVGG(VGG):
    """A VGG for 32 x 32 pixels, (B, 3, 32, 32) -> logits (B, K)."""

    def __init__(self, depth: int, num_classes: int, *, batch_norm: bool = False, hidden: int = 128, dropout: float = 0.2) -> None:
        nn.Module.__init__(self)  # torchvision's own __init__ builds a classifier with 120 million weights
        self.features = make_layers(MINI_LAYERS[depth], batch_norm=batch_norm)  # (B, 64, 4, 4)
        self.avgpool = nn.AdaptiveAvgPool2d(4)
        self.classifier = nn.Sequential(
            nn.Linear(64 * 4 * 4, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(module.bias)


def without_bias(net: nn.Module) -> nn.Module:
    """Remove the bias of every convolution and linear layer, which makes a ReLU net with zero padding homogeneous."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_parameter("bias", None)
    return net


def _register_mini(depth: int) -> None:
    @register_model(
        f"mini_vgg{depth}", family="vgg", cam_layer="features", num_classes=10, input_size=32, source=VGG_PAPER, training=MINI_TRAINING
    )
    def build(num_classes: int) -> nn.Module:
        return MiniVGG(depth, num_classes)


for _name in ("vgg11", "vgg13", "vgg16", "vgg19", "vgg16_bn"):
    register_torchvision(_name, family="vgg", cam_layer="features", source=VGG_PAPER)
for _depth in MINI_LAYERS:
    _register_mini(_depth)


@register_model(family="vgg", normalisation=IMAGENET, cam_layer="features", source=X_DNN)
def x_vgg16(num_classes: int) -> nn.Module:
    return without_bias(torchvision.models.vgg16(num_classes=num_classes))


@register_model(family="vgg", cam_layer="features", num_classes=10, input_size=32, source=VGG_PAPER, training=MINI_TRAINING)
def mini_vgg11_bn(num_classes: int) -> nn.Module:
    """Build mini_vgg11 with BatchNorm."""
    return MiniVGG(11, num_classes, batch_norm=True)


@register_model(family="vgg", cam_layer="features", num_classes=10, input_size=32, source=X_DNN, training=MINI_TRAINING)
def mini_x_vgg11(num_classes: int) -> nn.Module:
    """Build mini_vgg11 without any bias."""
    return without_bias(MiniVGG(11, num_classes))
