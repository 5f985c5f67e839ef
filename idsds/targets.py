"""Which class of an image is explained: its label, or what the model that is judged takes it for."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from idsds.batching import default_batch, in_batches
from idsds.methods.base import Passes
from idsds.models.base import frozen
from idsds.registry import UnknownNameError

Target = Literal["label", "prediction"]
#: One pass per image and file of method-independent columns, in which the class is kept.
PREDICTION_PASSES = Passes(1)


def check_target(target: object) -> None:
    """Raise UnknownNameError for what is neither ``label`` nor ``prediction``."""
    if target not in get_args(Target):
        raise UnknownNameError("target", target, get_args(Target))


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    """The class with the highest logit, (B,), of images (B, 3, H, W); one forward pass each."""
    with torch.inference_mode(), frozen(model):
        logits = in_batches(model, images, size=default_batch(images))  # (B, K)
    return logits.argmax(dim=1)
