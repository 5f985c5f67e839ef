"""Class activation maps: weighted sums of the activations A of one layer, with weights from their gradient g = d logit / dA.

All CAMs of a layer share one forward and one backward pass; the autograd graph starts at the layer, so the backward pass covers only what
follows it. Maps are rectified but not rescaled (the reference stretches each to [0, 1], which does not change the ranking of its pixels)
and resized bilinearly to the image size. With sums over positions,

==================  ==================================================  ==========================================
Grad-CAM            relu(sum_k mean(g) A)                               Selvaraju et al., ICCV 2017
Grad-CAM++          relu(sum_k sum(relu(g)^3) A)                        as in the published numbers
Grad-CAM++ (paper)  relu(sum_k sum(relu(g) / (2 + g sum(A))) A)         Chattopadhay et al., WACV 2018
XGrad-CAM           relu(sum_k sum(g A) / sum(A) A)                     Fu et al., BMVC 2020
Layer-CAM           relu(sum_k relu(g) A)                               Jiang et al., TIP 2021
SG-CAM++            see :func:`sg_cam`                                  Omeiza et al., 2019
==================  ==================================================  ==========================================

The weights are those of torchcam, as in the reference. There Grad-CAM++'s division is written to a copy and lost, so its weights are
sum(relu(g)^3). The paper's weights are g^2 / (2 g^2 + g^3 sum(A)) relu(g); cancelling g^2 keeps them exact where g^3 underflows in
float32.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd
from torch.overrides import TorchFunctionMode

from idsds.common.batching import in_batches
from idsds.common.randomness import Draws
from idsds.common.registry import UnknownNameError, check_name
from idsds.methods.base import Passes, register_method
from idsds.methods.transformer import is_transformer, transformer_grad_cam
from idsds.models.base import Channels, describe

EPSILON = 1e-8  # added by torchcam to the denominators of XGrad-CAM and SG-CAM++

#: Module types whose output has its channels first.
CHANNELS_FIRST = (_ConvNd, _NormBase, nn.GroupNorm, _MaxPoolNd, _AvgPoolNd, _AdaptiveMaxPoolNd, _AdaptiveAvgPoolNd, nn.Upsample)
REARRANGED = {getattr(where, name) for where in (torch, Tensor) for name in ("permute", "transpose", "movedim", "moveaxis", "swapaxes")}
_KNOWN_CHANNELS: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, ...], Channels | None]] = weakref.WeakKeyDictionary()


def cam_layer(model: nn.Module, layer: str | None = None) -> str:
    """Return the dotted name of the CAM layer. Raises UnknownNameError, or ValueError if the model has none."""
    name = layer or describe(model).cam_layer
    modules = dict(model.named_modules())
    if name is None:
        form = '{"Grad-CAM": ("Grad-CAM", {"layer": "' + (_last_features(model) or "layer4") + '"})}'
        raise ValueError(f"{describe(model).name} has no CAM layer: name one, in create_method with layer=..., in evaluate as {form}")
    if name not in modules:
        raise UnknownNameError("layer", name, filter(None, modules))
    return name


def no_cam_layer(model: nn.Module) -> str | None:
    """Return why CAMs do not apply to a model; None if they do."""
    entry = describe(model)
    if is_transformer(model):
        return "it reads a convolutional layer; of the CAMs, only Grad-CAM is defined on attention"
    if entry.cam_layer is None and entry.family != "own":
        return f"the {entry.family} family has no CAM layer"
    return None


def no_grad_cam(model: nn.Module) -> str | None:
    """Return why Grad-CAM, which also has a version for attention, does not apply to a model; None if it does."""
    return None if is_transformer(model) else no_cam_layer(model)


def _last_features(model: nn.Module) -> str:
    """Return the name of the last module of a type that outputs feature maps; "" if there is none."""
    kinds = [(name, type(module).__name__) for name, module in model.named_modules() if isinstance(module, CHANNELS_FIRST)]
    names = [name for name, kind in kinds if "1d" not in kind and not kind.startswith("Adaptive")]  # these pool all positions into one
    return names[-1] if names else ""


@contextmanager
def graph_from(module: nn.Module) -> Iterator[list[Tensor]]:
    """Start the autograd graph at the output of ``module`` and collect its outputs."""
    outputs: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: object, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise TypeError(
                f"CAMs need a layer that outputs feature maps; this one, a {type(module).__name__}, gives a {type(output).__name__}"
            )
        outputs.append(output.detach().requires_grad_())
        return outputs[-1].clone()  # a copy, because the next layer may work in place

    with module.register_forward_hook(cut):
        yield outputs


def channels_of(model: nn.Module, layer: str, output: Tensor, images: Tensor) -> Channels:
    """Determine the channel dimension of a layer's output (B, ., ., .).

    The module's type decides first: a convolution outputs (B, K, h, w), a linear layer (B, h, w, K). Otherwise h and w must have the
    image's aspect ratio. If both layouts are possible, the last preceding layer whose type determines the layout decides, unless
    dimensions were permuted in between.

    Raises:
        ValueError: if the layout remains ambiguous, or the output is not 4-dimensional.
    """
    module, shape = model.get_submodule(layer), tuple(output.shape)
    if output.ndim != 4:
        hint = "a function (B, N, K) -> (B, K, h, w)" if output.ndim == 3 else "a function that brings it to (B, K, h, w)"
        raise ValueError(f"CAMs need feature maps (B, K, h, w), but layer {layer!r} gives {shape}; name another, or give channels={hint}")
    if (said := _said_by(module)) is not None:
        return said
    height, width = images.shape[-2:]
    off: dict[Channels, float] = {"first": abs(shape[2] - height * shape[3] / width), "last": abs(shape[1] - height * shape[2] / width)}
    likely = [name for name, distance in off.items() if distance <= 1]  # strides and borders may cost one position
    if len(likely) == 1:
        return likely[0]
    known = _KNOWN_CHANNELS.setdefault(module, {})
    if shape[1:] not in known:
        known[shape[1:]] = _said_before(model, module, images[:1])
    if (found := known[shape[1:]]) is None:
        why = "can be read in both ways" if likely else f"does not have the aspect ratio of the image, {height} x {width}"
        raise ValueError(
            f"layer {layer!r} gives {shape}, which {why}: give channels='first' for (B, K, h, w) or channels='last' for (B, h, w, K)"
        )
    return found


def _said_by(module: nn.Module) -> Channels | None:
    if isinstance(module, CHANNELS_FIRST):
        return "first"
    plain = type(module) is nn.Linear or (type(module) is nn.LayerNorm and len(module.normalized_shape) == 1)
    return "last" if plain else None


class _Order(TorchFunctionMode):
    """Record in ``said`` when dimensions are permuted."""

    def __init__(self, said: list[tuple[tuple[int, ...], Channels | None]]) -> None:
        super().__init__()
        self.said = said

    def __torch_function__(self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in REARRANGED:
            self.said.clear()
        return func(*args, **(kwargs or {}))


def _said_before(model: nn.Module, module: nn.Module, image: Tensor) -> Channels | None:
    """Return the layout of the last preceding module whose type determines it and whose output has the same shape."""
    said: list[tuple[tuple[int, ...], Channels | None]] = []
    answer: list[Channels | None] = []

    def note(each: nn.Module, _inputs: object, output: Any) -> None:
        if isinstance(output, Tensor):
            if each is module:
                answer.append(next((how for shape, how in reversed(said) if shape == tuple(output.shape)), None))
            elif (how := _said_by(each)) is not None:
                said.append((tuple(output.shape), how))

    with torch.no_grad(), _Order(said), ExitStack() as stack:
        for each in model.modules():
            stack.enter_context(each.register_forward_hook(note))
        model(image)
    return answer[0] if answer else None


Reading = Channels | Callable[[Tensor], Tensor] | None


def channels_first(model: nn.Module, layer: str, output: Tensor, images: Tensor, channels: Reading) -> Callable[[Tensor], Tensor]:
    """Return a function that rearranges the layer's output and gradient to (B, K, h, w).

    Raises:
        UnknownNameError: if ``channels`` is not ``first``, ``last``, None or a function.
        ValueError: see :func:`channels_of`.
    """
    if callable(channels):
        if (shape := channels(output).shape)[:1] != output.shape[:1] or len(shape) != 4:
            raise ValueError(
                f"channels= brings the output of layer {layer!r}, {tuple(output.shape)}, to {tuple(shape)}; wanted (B, K, h, w)"
            )
        return channels
    if channels is None:  # a registered model's CAM layer is known to output feature maps
        entry = describe(model)
        known = layer == entry.cam_layer and output.ndim == 4
        channels = entry.cam_channels if known else channels_of(model, layer, output, images)
    check_name("channels", channels, get_args(Channels))
    if output.ndim != 4:
        raise ValueError(f"channels={channels!r} is for outputs of four dimensions, but layer {layer!r} gives {tuple(output.shape)}")
    return (lambda values: values) if channels == "first" else (lambda values: values.permute(0, 3, 1, 2))


def activations_and_gradients(
    model: nn.Module, layer: str, images: Tensor, targets: Tensor, channels: Reading = None
) -> tuple[Tensor, Tensor]:
    """Return a layer's output and the target logit's gradient there, (B, K, h, w) each, in the images' dtype.

    Raises:
        TypeError, ValueError: if the layer does not run exactly once or does not output feature maps, see :func:`channels_of`.
    """
    with torch.enable_grad(), graph_from(model.get_submodule(layer)) as outputs:
        scores = model(images)
        if len(outputs) != 1:
            shapes = [tuple(output.shape) for output in outputs]
            raise ValueError(f"CAMs need a layer that outputs feature maps (B, K, h, w) once per pass; {layer!r} gave {shapes}")
        (output,) = outputs
        ordered = channels_first(model, layer, output, images, channels)
        gradients = torch.autograd.grad(scores.gather(1, targets[:, None]).sum(), output)
    return ordered(output.detach()).to(images.dtype), ordered(gradients[0]).to(images.dtype)


def weighted(weights: Tensor, activations: Tensor) -> Tensor:
    """Return relu(sum_k weights A), (B, K, h or 1, w or 1) and (B, K, h, w) -> (B, h, w)."""
    return (weights * activations).sum(dim=1).relu()


def total(values: Tensor) -> Tensor:
    """Sum over positions, (B, K, h, w) -> (B, K, 1, 1)."""
    return values.sum(dim=(2, 3), keepdim=True)


def resized(maps: Tensor, images: Tensor) -> Tensor:
    """Resize (B, M, h, w) -> (B, M, H, W) bilinearly, with half-pixel centres."""
    return F.interpolate(maps, size=images.shape[-2:], mode="bilinear", align_corners=False)


def cam_weights(activations: Tensor, gradients: Tensor) -> dict[str, Tensor]:
    """Return the weights of each method, (B, K, h or 1, w or 1); see the formulas in this module's docstring."""
    positive, whole = gradients.relu(), activations.flatten(2).sum(-1)  # summed as in torchcam, to the last digit
    weights = {
        "Grad-CAM": gradients.flatten(2).mean(-1),
        "Grad-CAM++": (gradients**2 * positive).flatten(2).sum(-1),
        "XGrad-CAM": (gradients * activations).flatten(2).sum(-1) / (whole + EPSILON),
    }
    weights = {name: values[..., None, None] for name, values in weights.items()}
    paper = total(torch.where(positive > 0, positive / (2 + positive * total(activations)), 0))
    return {**weights, "Grad-CAM++ (paper)": paper, "Layer-CAM": positive}


@register_method("Grad-CAM", family="CAM", passes=Passes(1, 1), inapplicable=no_grad_cam, source="Selvaraju et al., ICCV 2017")
@register_method(
    "Grad-CAM++",
    "Grad-CAM++ (paper)",
    "XGrad-CAM",
    "Layer-CAM",
    family="CAM",
    passes=Passes(1, 1),
    inapplicable=no_cam_layer,
    source="Chattopadhay et al., WACV 2018 (Grad-CAM++); Fu et al., BMVC 2020 (XGrad-CAM); Jiang et al., TIP 2021 (Layer-CAM)",
)
def cams(
    model: nn.Module, images: Tensor, targets: Tensor, *, layer: str | None = None, channels: Reading = None, batch: int
) -> dict[str, Tensor]:
    """Compute all CAMs of one layer; on a vision transformer, compute Grad-CAM of the last block's attention.

    Args:
        layer: dotted name of a module that outputs feature maps; None for the CAM layer of the model's entry.
        channels: layout of the layer's output, ``first`` (B, K, h, w) or ``last`` (B, h, w, K), or a function that rearranges it to (B,
            K, h, w), like ``reshape_transform`` in pytorch-grad-cam; None to determine it, see :func:`channels_of`.
    """
    if is_transformer(model):
        return {"Grad-CAM": in_batches(lambda *some: transformer_grad_cam(model, *some), images, targets, size=batch)}
    name = cam_layer(model, layer)
    names: list[str] = []

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        activations, gradients = activations_and_gradients(model, name, images, targets, channels)
        weights = cam_weights(activations, gradients)
        names[:] = weights
        return torch.stack([weighted(w, activations) for w in weights.values()], dim=1)  # (B, methods, h, w)

    maps = resized(in_batches(attribute, images, targets, size=batch), images)
    return dict(zip(names, maps.unbind(dim=1), strict=True))


@register_method(
    "SG-CAM++",
    "SG-CAM++ (paper)",
    family="CAM",
    passes=lambda model, samples, **_: Passes(samples + 1, samples),
    noise="SG-CAM++",
    inapplicable=no_cam_layer,
    source="Omeiza et al., 2019 (Smooth Grad-CAM++)",
)
def sg_cam(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    layer: str | None = None,
    channels: Reading = None,
    samples: int = 4,
    sigma: float = 0.3,
    draws: Draws,
    batch: int,
) -> dict[str, Tensor]:
    """Compute Grad-CAM++ with gradients averaged over noisy copies of the image.

    With Dp the mean over samples of g^p, and A the activations of the clean image, the paper defines

        alpha = D1 / (2 D2 + D3 sum(A)),  weights = sum(alpha relu(D1)),  map = relu(sum_k weights A).

    ``SG-CAM++`` is torchcam's version, used for the published numbers: alpha = D2 / (2 D2 + sum(D3 A) + 1e-8), with relu(D1) and A
    replaced by the gradient's relu and the activations of the last noisy copy alone.

    Args:
        layer, channels: see :func:`cams`.
        samples: noisy copies per image.
        sigma: standard deviation of the noise, in the units of the images.
    """
    drawn, name = draws.normal(samples), cam_layer(model, layer)

    def clean(images: Tensor) -> Tensor:
        with graph_from(model.get_submodule(name)) as outputs, torch.no_grad():
            model(images)
        return channels_first(model, name, outputs[0], images, channels)(outputs[0].detach()).to(images.dtype)

    def attribute(images: Tensor, targets: Tensor, drawn: Tensor) -> Tensor:
        reference = clean(images)
        moments = [torch.zeros_like(reference) for _ in range(3)]
        for sample in range(samples):
            activations, gradients = activations_and_gradients(model, name, images + sigma * drawn[:, sample], targets, channels)
            for power, moment in enumerate(moments, start=1):
                moment += gradients**power / samples
        first, second, third = moments
        as_torchcam = total(second / (2 * second + total(third * reference) + EPSILON) * gradients.relu())
        denominator = 2 * second + third * total(reference)
        as_paper = total(torch.where((first > 0) & (denominator != 0), first / denominator * first, 0))
        return torch.stack([weighted(as_torchcam, activations), weighted(as_paper, reference)], dim=1)  # (B, 2, h, w)

    maps = resized(in_batches(attribute, images, targets, drawn, size=batch), images)
    return {"SG-CAM++": maps[:, 0], "SG-CAM++ (paper)": maps[:, 1]}
