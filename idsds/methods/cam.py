"""Class activation maps: torchcam's weights over one shared forward pass, and one backward pass through the layers behind the CAM layer.

The graph begins at the CAM layer, so that the backward pass costs no more than the classifier. Maps are rectified but not rescaled
(the reference stretches each to [0, 1] first, which moves no rank of a map's pixels), and resized bilinearly to the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchcam.methods import GradCAM

from idsds.batching import in_batches
from idsds.methods.base import Passes, register_method
from idsds.models.base import describe
from idsds.registry import UnknownNameError


class _SharedGradient:
    """Mixed into a torchcam extractor: its activations and gradients are handed in, it does no backward pass of its own."""

    def _backprop(self, *args: object, **kwargs: object) -> None:
        pass


class _GradCAM(_SharedGradient, GradCAM):
    pass


EXTRACTORS = {"Grad-CAM": _GradCAM}


def cam_layer(model: nn.Module, layer: str | None = None) -> str:
    """The dotted name of the layer that CAMs read. Raises UnknownNameError, or ValueError where the model has no such layer."""
    name = layer or describe(model).cam_layer
    modules = dict(model.named_modules())
    if name is None:
        raise ValueError(f"{describe(model).name} has no CAM layer; name one with layer=...")
    if name not in modules:
        raise UnknownNameError("layer", name, filter(None, modules))
    return name


def no_cam_layer(model: nn.Module) -> str | None:
    """Why CAMs do not apply to a model."""
    entry = describe(model)
    if entry.cam_layer is None and entry.family != "own":
        return f"the {entry.family} family has no CAM layer"
    return None


@contextmanager
def graph_from(module: nn.Module, outputs: list[Tensor]) -> Iterator[None]:
    """Start the autograd graph at the output of ``module``, and append each such output to ``outputs``."""

    def cut(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1].clone()  # a copy: the next layer may work in place

    handle = module.register_forward_hook(cut)
    try:
        yield
    finally:
        handle.remove()


@register_method(*EXTRACTORS, family="CAM", passes=Passes(1, 1), inapplicable=no_cam_layer, source="Selvaraju et al., ICCV 2017 (Grad-CAM)")
def cams(model: nn.Module, images: Tensor, targets: Tensor, *, layer: str | None = None, batch: int) -> dict[str, Tensor]:
    """All CAMs of one layer."""
    name = cam_layer(model, layer)
    module = model.get_submodule(name)

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        with torch.enable_grad(), graph_from(module, outputs):
            scores = model(images)
            gradients = torch.autograd.grad(scores.gather(1, targets[:, None]).sum(), outputs)
        maps = []
        for extractor_class in EXTRACTORS.values():
            with extractor_class(model, name, enable_hooks=False) as extractor:
                extractor.hook_a, extractor.hook_g = [outputs[0].detach()], [gradients[0]]
                maps.append(extractor(targets.tolist(), scores.detach(), normalized=False)[0])  # (B, h, w)
        return torch.stack(maps, dim=1)  # (B, methods, h, w)

    maps = in_batches(attribute, images, targets, size=batch)
    maps = F.interpolate(maps, size=images.shape[-2:], mode="bilinear", align_corners=False)
    return dict(zip(EXTRACTORS, maps.unbind(dim=1), strict=True))
