"""Published ImageNet weights, which are downloaded only on request."""

from __future__ import annotations

from collections.abc import Mapping

import torchvision
from torch import Tensor, nn


def from_torchvision(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    """Build one of torchvision's nets.

    Args:
        name: torchvision's name for it.
        num_classes: K.
        pretrained: load ``IMAGENET1K_V1``, the initial weights of the paper's fine-tuning; the first time they are downloaded into
            torch.hub's cache. If K is not 1000, the classifier keeps its fresh weights.
    """
    net = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    if pretrained:
        load_published(net, torchvision.models.get_model(name, weights="IMAGENET1K_V1").state_dict())
    return net


def load_published(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load strictly, but keep the net's last layer if its number of classes differs. Raises RuntimeError for any other difference."""
    own = net.state_dict()
    classifier = list(own)[-1].rpartition(".")[0]
    kept = {key: value for key, value in own.items() if key.rpartition(".")[0] == classifier and value.shape != state[key].shape}
    net.load_state_dict({**state, **kept})
