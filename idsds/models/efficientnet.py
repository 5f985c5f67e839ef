"""EfficientNets (Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019).

The nets are of torchvision's class, in other sizes.
"""

from __future__ import annotations

from torch import nn
from torchvision.models.efficientnet import EfficientNet, MBConvConfig

from idsds.models.base import register_model
from idsds.models.pretrained import register_torchvision

SOURCE = "Tan and Le, ICML 2019"


register_torchvision("efficientnet_b0", family="efficientnet", cam_layer="features", source=SOURCE)


@register_model(family="efficientnet", cam_layer="features", num_classes=10, input_size=32, source=SOURCE, training={"epochs": 6})
def mini_efficientnet(num_classes: int) -> nn.Module:
    """Build three stages of inverted residuals with squeeze and excitation, at 16 x 16, 8 x 8 and 8 x 8 pixels."""
    stages = [  # expansion, kernel, stride, input channels, output channels, layers
        MBConvConfig(1, 3, 1, 16, 16, 1, 1.0, 1.0),
        MBConvConfig(4, 3, 2, 16, 24, 2, 1.0, 1.0),
        MBConvConfig(4, 5, 1, 24, 40, 2, 1.0, 1.0),
    ]
    return EfficientNet(stages, dropout=0.2, stochastic_depth_prob=0.0, num_classes=num_classes, last_channel=128)
