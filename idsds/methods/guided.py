"""Backpropagation with modified rules at ReLUs: Deconvolution, Guided Backprop and Guided Grad-CAM.

With x the input of a ReLU and d the gradient at its output, the gradient at its input is

* the gradient:     d where x > 0
* Deconvolution:    relu(d)
* Guided Backprop:  relu(d) where x > 0

(and x < c for a ReLU with a cap c, such as ReLU6). The rule replaces every ReLU that runs: modules, reused modules, functions and
in-place calls. (Captum hooks the input tensor of ``nn.ReLU`` modules; it therefore misses functional ones, and also rectifies the
gradient of a shortcut that reads the same tensor as a ReLU.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from idsds.common.batching import in_batches
from idsds.common.randomness import Draws
from idsds.common.registry import check_name
from idsds.methods.base import METHODS, Passes, register_method
from idsds.methods.cam import Reading, activations_and_gradients, cam_layer, no_cam_layer, weighted
from idsds.methods.gradient import SIGMA, SMOOTHGRAD, STUDY_SMOOTHGRAD, smoothed
from idsds.models.base import describe

RELU = (F.relu, torch.relu, Tensor.relu, F.relu_, torch.relu_, Tensor.relu_)
CLAMP = (torch.clamp, torch.clip, torch.clamp_, torch.clip_, Tensor.clamp, Tensor.clip, Tensor.clamp_, Tensor.clip_)
CLAMP_MIN = (torch.clamp_min, torch.clamp_min_, Tensor.clamp_min, Tensor.clamp_min_)
INTERPOLATIONS = ("nearest", "bilinear")


class _Deconvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cap: float | None = None) -> Tensor:
        return x.clamp(min=0, max=cap)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.clamp(min=0), None


class _Guided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cap: float | None = None) -> Tensor:
        ctx.cap = cap
        ctx.save_for_backward(out := x.clamp(min=0, max=cap))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        passing = out > 0 if ctx.cap is None else (out > 0) & (out < ctx.cap)
        return gradient.clamp(min=0) * passing, None


def _as_relu(func: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, float | None, bool] | None:
    """Return the input of a ReLU call, its cap (None if uncapped) and whether it works in place; None for any other call."""

    def value(place: int, name: str, default: Any = None) -> Any:
        return args[place] if len(args) > place else kwargs.get(name, default)

    x, cap = value(0, "input"), None
    if func is F.relu6:
        cap = 6.0
    elif func in (F.hardtanh, F.hardtanh_):
        if value(1, "min_val", -1.0) != 0:
            return None
        cap = value(2, "max_val", 1.0)
    elif func in CLAMP or func in CLAMP_MIN:
        low = value(1, "min")
        cap = value(2, "max") if func in CLAMP else None
        if isinstance(low, Tensor) or isinstance(cap, Tensor) or low != 0 or not x.is_floating_point():
            return None
    elif func in (F.threshold, F.threshold_):
        if value(1, "threshold") != 0 or value(2, "value") != 0:
            return None
    elif func not in RELU:
        return None
    flag = 1 if func in (F.relu, F.relu6) else 3 if func in (F.hardtanh, F.threshold) else None  # the place of ``inplace``
    in_place = getattr(func, "__name__", "").endswith("_") if flag is None else bool(value(flag, "inplace", False))
    return x, cap, in_place


class ReluRule(TorchFunctionMode):
    """Context manager that replaces every ReLU inside, capped or not, by ``rule``; ``count`` counts them."""

    def __init__(self, rule: Callable[..., Tensor]) -> None:
        super().__init__()
        self.rule, self.count = rule, 0

    def __torch_function__(self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        relu = _as_relu(func, args, kwargs)
        if relu is None:
            return func(*args, **kwargs)
        self.count += 1
        x, cap, in_place = relu
        # An in-place ReLU's result may be ignored or its input read again, so the tensor itself must change.
        return x.copy_(self.rule(x, cap)) if in_place else self.rule(x, cap)


def no_relu(model: nn.Module) -> str | None:
    """Return why the rules do not apply to a model; None if they do. Functional ReLUs of a user's net are seen only when it runs."""
    if describe(model).family == "own" or any(isinstance(module, (nn.ReLU, nn.ReLU6)) for module in model.modules()):
        return None
    return "it changes the backward pass of ReLUs, and this model has none"


def ruled_gradients(model: nn.Module, images: Tensor, targets: Tensor, rule: type[torch.autograd.Function], batch: int) -> Tensor:
    """Return the target logit's input gradient, (B, C, H, W), with ``rule`` at every ReLU. Raises ValueError if no ReLU runs."""

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
    """Return the input gradient, with only gradients rectified at ReLUs."""
    return ruled_gradients(model, images, targets, _Deconvolution, batch)


@register_method("Guided Backprop", family="gradient", passes=Passes(1, 1), inapplicable=no_relu, source="Springenberg et al., 2015")
def guided_backprop(model: nn.Module, images: Tensor, targets: Tensor, *, batch: int) -> Tensor:
    """Return the input gradient, with both activations and gradients rectified at ReLUs."""
    return ruled_gradients(model, images, targets, _Guided, batch)


@register_method(
    "Guided Grad-CAM",
    family="gradient",
    variants={"Guided Grad-CAM (paper)": {"interpolation": "bilinear"}},
    passes=Passes(2, 2),
    inapplicable=lambda model: no_relu(model) or no_cam_layer(model),
    source="Selvaraju et al., ICCV 2017",
)
def guided_grad_cam(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    layer: str | None = None,
    channels: Reading = None,
    interpolation: str = "nearest",
    batch: int,
) -> Tensor:
    """Return Guided Backprop multiplied by Grad-CAM.

    Args:
        layer, channels: see :func:`idsds.methods.cam.cams`.
        interpolation: how the CAM is resized to the image size: ``nearest``, captum's default, or ``bilinear``, as in the paper.
    """
    check_name("interpolation", interpolation, INTERPOLATIONS)
    name = cam_layer(model, layer)

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        activations, gradients = activations_and_gradients(model, name, images, targets, channels)
        maps = weighted(gradients.mean(dim=(2, 3), keepdim=True), activations)[:, None]  # (B, 1, h, w)
        options = {} if interpolation == "nearest" else {"align_corners": False}
        return F.interpolate(maps, size=images.shape[-2:], mode=interpolation, **options)

    maps = in_batches(attribute, images, targets, size=batch)
    return maps * ruled_gradients(model, images, targets, _Guided, batch)


def guided_smoothed(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    of: str,
    layer: str | None = None,
    samples: int = STUDY_SMOOTHGRAD["samples"],
    sigma: float = SIGMA,
    relative: bool = False,
    draws: Draws,
    batch: int,
) -> Tensor:
    """Apply SmoothGrad to the method ``of`` of this module; for the options see :func:`guided_grad_cam` and :func:`smoothed`."""
    options = {"layer": layer} if of == "Guided Grad-CAM" else {}

    def attribute(noisy: Tensor, targets: Tensor, some: slice) -> dict[str, Tensor]:
        return {of: METHODS[of].function(model, noisy, targets, batch=batch, **options)}  # type: ignore[dict-item]

    return smoothed(attribute, images, targets, samples, sigma, relative, draws, batch)[f"{of}-SG"]


for _entry in [METHODS[name] for name in ("Deconvolution", "Guided Backprop", "Guided Grad-CAM")]:
    register_method(
        f"{_entry.name}-SG",
        family="gradient",
        options={"of": _entry.name},
        passes=lambda model, samples, each=_entry.passes, **_: each.times(samples),
        noise="SmoothGrad",
        inapplicable=_entry.inapplicable,
        source=f"{_entry.source}; {SMOOTHGRAD['-SG']}",
    )(guided_smoothed)
