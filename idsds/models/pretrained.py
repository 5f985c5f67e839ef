"""Nets of torchvision, with its ImageNet weights where they are asked for. Nothing is downloaded otherwise."""

from __future__ import annotations

import torchvision
from torch import nn


def from_torchvision(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    """A net of torchvision's.

    Args:
        name: torchvision's name for it.
        num_classes: K.
        pretrained: load ``IMAGENET1K_V1``, the weights that the paper's fine-tuning starts from. They are downloaded into torch.hub's
            cache the first time. For K other than 1000 the classifier keeps its fresh weights and the rest is loaded.

    Raises:
        RuntimeError: where the weights do not fit the net beyond its classifier.
    """
    net = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    if pretrained:
        weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
        state = weights.get_state_dict(progress=True, check_hash=True)
        if num_classes != len(weights.meta["categories"]):
            own, classifier = net.state_dict(), [key.rsplit(".", 1)[0] for key in state][-1]
            state |= {key: own[key] for key in state if key.rsplit(".", 1)[0] == classifier}
        net.load_state_dict(state)
    return net
