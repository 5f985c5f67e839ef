"""Explanations that are part of the model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from idsds.common.batching import ACCELERATOR_BYTES_PER_PIXEL, in_batches
from idsds.methods.base import Passes, register_method
from idsds.models.bagnet import BagNet


@runtime_checkable
class BcosNet(Protocol):
    """What a B-cos net offers: see :mod:`idsds.models.bcos`; a net of the user's that has these three is explained as well."""

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 6, H, W)."""

    def classify(self, encoded: Tensor) -> Tensor:
        """(B, 6, H, W) -> logits (B, K)."""

    def explanation_mode(self) -> AbstractContextManager[Any]:
        """Within it the gradient at the encoded image is the net's dynamic linear map."""


def no_bagnet(model: nn.Module) -> str | None:
    """Why the BagNet explanation does not apply to a model."""
    return None if isinstance(model, BagNet) else "it is the intrinsic explanation of BagNet models"


def no_bcos(model: nn.Module) -> str | None:
    """Why the B-cos explanation does not apply to a model."""
    return None if isinstance(model, BcosNet) else "it is the intrinsic explanation of B-cos models"


def dense_batch(model: BagNet, batch: int) -> int:
    """How many dense maps take the memory of so many ordinary passes: their features have the size of the image, four tensors at a time."""
    return -(-batch * ACCELERATOR_BYTES_PER_PIXEL // (4 * 4 * model.fc.in_features))


@register_method("BagNet", family="intrinsic", passes=Passes(1), inapplicable=no_bagnet, source="Brendel and Bethge, ICLR 2019")
@torch.inference_mode()
def bagnet(model: BagNet, images: Tensor, targets: Tensor, *, batch: int) -> Tensor:
    """The target logit of the window around each pixel, bias included, as the reference takes it, (B, 1, H, W).

    The windows are not cut out: one evaluation of the fully convolutional net, with strides turned into dilations, gives all of them.
    """
    return in_batches(lambda images, targets: model(images, window_targets=targets), images, targets, size=dense_batch(model, batch))


@register_method("B-cos", family="intrinsic", passes=Passes(1, 1), inapplicable=no_bcos, source="Böhle et al., CVPR 2022")
def bcos(model: BcosNet, images: Tensor, targets: Tensor, *, batch: int) -> Tensor:
    """w * x of the dynamic linear map w that the net is for each image x, over its six channels (colours and their inverses), (B, 6, H, W).

    Its sum is the target logit, less the logits' constant.
    """

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        encoded = model.encode(images).detach().requires_grad_()  # (B, 6, H, W)
        with torch.enable_grad(), model.explanation_mode():
            scores = model.classify(encoded).gather(1, targets[:, None]).sum()
            rows = torch.autograd.grad(scores, encoded)[0]
        return rows * encoded.detach()

    return in_batches(attribute, images, targets, size=batch)
