"""Published ImageNet weights, where they are asked for. Nothing is downloaded otherwise."""

from __future__ import annotations

from collections.abc import Mapping

import torchvision
from torch import Tensor, nn


def from_torchvision(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    """A net of torchvision's.

    Args:
        name: torchvision's name for it.
        num_classes: K.
        pretrained: load ``IMAGENET1K_V1``, the weights that the paper's fine-tuning starts from; the first time they are downloaded into
            torch.hub's cache. For K other than 1000 the classifier keeps its fresh weights.
    """
    net = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    if pretrained:
        load_published(net, torchvision.models.get_model(name, weights="IMAGENET1K_V1").state_dict())
    return net


def load_published(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load strictly, but keep the net's own last layer where it has another number of classes. Raises RuntimeError where they differ."""
    own = net.state_dict()
    classifier = list(own)[-1].rpartition(".")[0]
    kept = {key: value for key, value in own.items() if key.rpartition(".")[0] == classifier and value.shape != state[key].shape}
    net.load_state_dict({**state, **kept})
