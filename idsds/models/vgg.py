"""VGG nets (Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015).

The ``mini_*`` nets are torchvision's class with an eighth of the channels, three poolings instead of five (so that ``features`` ends
in 4 x 4 positions for 32 x 32 pixels) and a small classifier.
"""

from __future__ import annotations

from torch import nn
from torchvision.models.vgg import VGG, make_layers

from idsds.models.base import register_model

MINI_LAYERS: dict[int, list[str | int]] = {
    11: [16, "M", 32, 64, 64, "M", 64, 64, 64, 64, "M"],
}


class MiniVGG(VGG):
    """A VGG for 32 x 32 pixels, (B, 3, 32, 32) -> logits (B, K)."""

    def __init__(self, depth: int, num_classes: int, *, batch_norm: bool = False, hidden: int = 128, dropout: float = 0.5) -> None:
        nn.Module.__init__(self)  # torchvision's own __init__ makes a classifier of 120 million weights
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


@register_model(family="vgg", cam_layer="features", num_classes=10, input_size=32, source="Simonyan and Zisserman, ICLR 2015")
def mini_vgg11(num_classes: int) -> nn.Module:
    return MiniVGG(11, num_classes)
