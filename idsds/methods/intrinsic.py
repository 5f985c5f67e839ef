"""Explanations that are part of the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from idsds.batching import in_batches
from idsds.methods.base import Passes, register_method
from idsds.models.bagnet import BagNet


def no_bagnet(model: nn.Module) -> str | None:
    """Why the BagNet explanation does not apply to a model."""
    return None if isinstance(model, BagNet) else "it is the intrinsic explanation of BagNet models"


@register_method("BagNet", family="intrinsic", passes=Passes(1), inapplicable=no_bagnet, source="Brendel and Bethge, ICLR 2019")
@torch.inference_mode()
def bagnet(model: nn.Module, images: Tensor, targets: Tensor, *, batch: int) -> Tensor:
    """The target logit of the window around each pixel, bias included, as the reference takes it."""
    return in_batches(lambda images, targets: model(images, window_targets=targets), images, targets, size=batch)
