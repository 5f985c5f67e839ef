"""Published ImageNet weights, downloaded only on request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torchvision
from torch import Tensor, nn

from idsds.common.normalisation import IMAGENET
from idsds.models.base import register_model


def register_torchvision(name: str, **entry: Any) -> None:
    """Register a net of torchvision under its name.

    ``pretrained`` loads ``IMAGENET1K_V1``, from which the paper fine-tunes; downloaded into torch.hub's cache on first use. If K is not
    1000, the classifier stays randomly initialised.
    """

    @register_model(name, normalisation=IMAGENET, **entry)
    def build(num_classes: int, pretrained: bool = False) -> nn.Module:
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
