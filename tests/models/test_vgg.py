"""The VGG without bias terms."""

import torch
import torchvision
from torch import nn

from idsds.models import create_model


def test_x_vgg16_has_the_layers_of_vgg16_and_no_bias():
    with torch.device("meta"):
        ours, theirs = create_model("x_vgg16"), torchvision.models.vgg16()
    assert [type(m) for m in ours.modules()] == [type(m) for m in theirs.modules()]
    assert all(m.bias is None for m in ours.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    assert [m.p for m in ours.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]
