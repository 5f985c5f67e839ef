"""Densely connected networks (Huang et al., "Densely Connected Convolutional Networks", CVPR 2017), torchvision's class."""

from __future__ import annotations

from torch import nn
from torchvision.models.densenet import DenseNet

from idsds.models.base import register_model
from idsds.models.pretrained import register_torchvision

SOURCE = "Huang et al., CVPR 2017"


register_torchvision("densenet121", family="densenet", cam_layer="features", source=SOURCE)


@register_model(family="densenet", cam_layer="features", num_classes=10, input_size=32, source=SOURCE, training={"epochs": 4})
def mini_densenet(num_classes: int) -> nn.Module:
    """Build three dense blocks at 16 x 16, 8 x 8 and 4 x 4 pixels; the stem is a 3 x 3 convolution with stride 2 and no pooling."""
    net = DenseNet(growth_rate=12, block_config=(3, 3, 3), num_init_features=24, num_classes=num_classes)
    stem = nn.Conv2d(3, 24, 3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight)
    net.features.conv0, net.features.pool0 = stem, nn.Identity()
    return net
