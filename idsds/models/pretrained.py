"""Published ImageNet weights, downloaded only on request."""

from __future__ import annotations

from collections.abc import Mapping

import torchvision
from torch import Tensor, nn


def from_torchvision(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    """Build a torchvision model.

    Args:
        name: torchvision's name for the model.
        pretrained: load ``IMAGENET1K_V1``, from which the paper fine-tunes; downloaded into torch.hub's cache on first use. If K is not
            1000, the classifier stays randomly initialised.
    """
    net = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    if pretrained:
        load_published(net, torchvision.models.get_model(name, weights="IMAGENET1K_V1").state_dict())
    return net


def load_published(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights strictly, except a last layer whose number of classes differs. Raises RuntimeError for any other mismatch."""
    own = net.state_dict()
    classifier = list(own)[-1].rpartition(".")[0]
    kept = {key: value for key, value in own.items() if key.rpartition(".")[0] == classifier and value.shape != state[key].shape}
    net.load_state_dict({**state, **kept})
