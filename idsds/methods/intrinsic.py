"""Explanations that are part of the model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from idsds.common.batching import ACCELERATOR_BYTES_PER_PIXEL, in_batches
from idsds.methods.base import LOGIT_ONLY, Passes, register_method
from idsds.models.bagnet import BagNet


@runtime_checkable
class BcosNet(Protocol):
    """The interface of a B-cos net, see :mod:`idsds.models.bcos`; a user's net with these three methods can be explained too."""

    def encode(self, images: Tensor) -> Tensor:
        """Encode images, (B, 3, H, W) -> (B, 6, H, W)."""

    def classify(self, encoded: Tensor) -> Tensor:
        """Classify encoded images, (B, 6, H, W) -> logits (B, K)."""

    def explanation_mode(self) -> AbstractContextManager[Any]:
        """Return a context manager in which the gradient at the encoded image is the net's dynamic linear map."""


def dense_batch(model: BagNet, batch: int) -> int:
    """Return how many dense maps fit into the memory of ``batch`` ordinary passes; each holds features at the image's full resolution."""
    return -(-batch * ACCELERATOR_BYTES_PER_PIXEL // (4 * 4 * model.fc.in_features))


@register_method(
    "BagNet",
    family="intrinsic",
    passes=Passes(1),
    inapplicable=lambda model: None if isinstance(model, BagNet) else "it is the intrinsic explanation of BagNet models",
    explains_not=LOGIT_ONLY,
    source="Brendel and Bethge, ICLR 2019",
)
@torch.inference_mode()
def bagnet(model: BagNet, images: Tensor, targets: Tensor, *, batch: int) -> Tensor:
    """Return the target logit of the window around each pixel, (B, 1, H, W), including the bias, as in the reference.

    Windows are not cropped: one pass of the fully convolutional net, with strides turned into dilations, computes all of them.
    """
    return in_batches(lambda images, targets: model(images, window_targets=targets), images, targets, size=dense_batch(model, batch))


@register_method(
    "B-cos",
    family="intrinsic",
    passes=Passes(1, 1),
    inapplicable=lambda model: None if isinstance(model, BcosNet) else "it is the intrinsic explanation of B-cos models",
    explains_not=LOGIT_ONLY,
    source="Böhle et al., CVPR 2022",
)
def bcos(model: BcosNet, images: Tensor, targets: Tensor, *, batch: int) -> Tensor:
    """Return w * x, (B, 6, H, W), with w the net's dynamic linear map for image x, encoded as six channels (colours and their inverses).

    It sums to the target logit minus the constant logit bias.
    """

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        encoded = model.encode(images).detach().requires_grad_()  # (B, 6, H, W)
        with torch.enable_grad(), model.explanation_mode():
            scores = model.classify(encoded).gather(1, targets[:, None]).sum()
            rows = torch.autograd.grad(scores, encoded)[0]
        return rows * encoded.detach()

    return in_batches(attribute, images, targets, size=batch)
