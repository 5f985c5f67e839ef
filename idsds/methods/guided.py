"""Backpropagation with another rule at ReLUs: Deconvolution, Guided Backprop and Guided Grad-CAM.

With x the input of a ReLU and d the gradient at its output, it hands down

* the gradient:     d where x > 0
* Deconvolution:    relu(d)
* Guided Backprop:  relu(d) where x > 0

The rule replaces every ReLU while the model runs, whether it is a module, a module that is used several times, a function, or in place.
(Captum hooks the input tensor of ``nn.ReLU`` modules, and so misses functional ones, and rectifies the gradient of a residual branch
too, where ReLU and shortcut read the same tensor.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from idsds.common.batching import in_batches
from idsds.common.registry import UnknownNameError
from idsds.methods.base import Passes, register_method
from idsds.methods.cam import activations_and_gradients, cam_layer, no_cam_layer, weighted
from idsds.models.base import describe

OUT_OF_PLACE = {F.relu, torch.relu, Tensor.relu}
IN_PLACE = {F.relu_, torch.relu_, Tensor.relu_}
INTERPOLATIONS = ("nearest", "bilinear")


class _Deconvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clamp(min=0)


class _Guided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(out := x.clamp(min=0))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        return gradient.clamp(min=0) * (out > 0)


class ReluRule(TorchFunctionMode):
    """Context manager: every ReLU that runs inside is ``rule`` instead; ``count`` says how many did."""

    def __init__(self, rule: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.rule, self.count = rule, 0

    def __torch_function__(self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in OUT_OF_PLACE or func in IN_PLACE:
            self.count += 1
            x = args[0] if args else kwargs["input"]
            in_place = func in IN_PLACE or kwargs.get("inplace", len(args) > 1 and args[1])
            # A ReLU in place may be called for its effect, or have its input read again: the tensor itself must change.
            return x.copy_(self.rule(x)) if in_place else self.rule(x)
        return func(*args, **kwargs)


def no_relu(model: nn.Module) -> str | None:
    """Why the rules do not apply to a model. A net of the user's may have functional ReLUs, which show only when it runs."""
    if describe(model).family == "own" or any(isinstance(module, nn.ReLU) for module in model.modules()):
        return None
    return "it changes how ReLUs hand gradients down, and this model has none"


def no_relu_or_cam_layer(model: nn.Module) -> str | None:
    """Why Guided Grad-CAM does not apply to a model."""
    return no_relu(model) or no_cam_layer(model)


def ruled_gradients(model: nn.Module, images: Tensor, targets: Tensor, rule: type[torch.autograd.Function], batch: int) -> Tensor:
    """The gradient of the target logit at the input with ``rule`` at every ReLU, (B, C, H, W). Raises ValueError where no ReLU runs."""

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        images = images.clone().requires_grad_()
        with torch.enable_grad():
            with ReluRule(rule.apply) as relus:
                scores = model(images)
            if not relus.count:
                raise ValueError(f"no ReLU ran in {describe(model).name} (a compiled or scripted model hides them)")
            return torch.autograd.grad(scores.gather(1, targets[:, None]).sum(), images)[0]

    return in_batches(attribute, images.detach(), targets, size=batch)


@register_method("Deconvolution", family="gradient", passes=Passes(1, 1), inapplicable=no_relu, source="Zeiler and Fergus, ECCV 2014")
def deconvolution(model: nn.Module, images: Tensor, targets: Tensor, *, batch: int) -> Tensor:
    """The gradient, with only the gradients rectified at ReLUs."""
    return ruled_gradients(model, images, targets, _Deconvolution, batch)


@register_method("Guided Backprop", family="gradient", passes=Passes(1, 1), inapplicable=no_relu, source="Springenberg et al., 2015")
def guided_backprop(model: nn.Module, images: Tensor, targets: Tensor, *, batch: int) -> Tensor:
    """The gradient, with activations and gradients rectified at ReLUs."""
    return ruled_gradients(model, images, targets, _Guided, batch)


@register_method(
    "Guided Grad-CAM",
    family="gradient",
    variants={"Guided Grad-CAM (paper)": {"interpolation": "bilinear"}},
    passes=Passes(2, 2),
    inapplicable=no_relu_or_cam_layer,
    source="Selvaraju et al., ICCV 2017",
)
def guided_grad_cam(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    layer: str | None = None,
    interpolation: str = "nearest",
    batch: int,
) -> Tensor:
    """Guided Backprop times Grad-CAM.

    Args:
        model: returns logits.
        images: (B, C, H, W).
        targets: (B,).
        layer: dotted name of a module that gives feature maps; None: the one of the model's entry.
        interpolation: how the CAM is brought to the image's size: ``nearest``, captum's default, or ``bilinear``, as in the paper.
        batch: images per pass.
    """
    if interpolation not in INTERPOLATIONS:
        raise UnknownNameError("interpolation", interpolation, INTERPOLATIONS)
    name = cam_layer(model, layer)

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        activations, gradients = activations_and_gradients(model, name, images, targets)
        maps = weighted(gradients.mean(dim=(2, 3), keepdim=True), activations)[:, None]  # (B, 1, h, w)
        options = {} if interpolation == "nearest" else {"align_corners": False}
        return F.interpolate(maps, size=images.shape[-2:], mode=interpolation, **options)

    maps = in_batches(attribute, images, targets, size=batch)
    return maps * ruled_gradients(model, images, targets, _Guided, batch)
