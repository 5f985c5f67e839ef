"""Class activation maps: weighted sums of the activations A of one layer, with weights from their gradient g = d logit / dA.

All CAMs of a layer come out of one forward pass and one backward pass; the graph begins at the layer, so that the backward pass costs no
more than the classifier. Maps are rectified but not rescaled (the reference stretches each to [0, 1] first, which moves no rank of a map's
pixels), and resized bilinearly to the image. With sums over positions,

==================  ==================================================  ==========================================
Grad-CAM            relu(sum_k mean(g) A)                               Selvaraju et al., ICCV 2017
Grad-CAM++          relu(sum_k sum(relu(g)^3) A)                        what the published numbers were made with
Grad-CAM++ (paper)  relu(sum_k sum(relu(g) / (2 + g sum(A))) A)         Chattopadhay et al., WACV 2018
XGrad-CAM           relu(sum_k sum(g A) / sum(A) A)                     Fu et al., BMVC 2020
Layer-CAM           relu(sum_k relu(g) A)                               Jiang et al., TIP 2021
SG-CAM++            see :func:`sg_cam`                                  Omeiza et al., 2019
==================  ==================================================  ==========================================

Torchcam computes the weights, as in the reference. It writes Grad-CAM++'s division into a copy, so that its weights are sum(relu(g)^3). The
published weights are g^2 / (2 g^2 + g^3 sum(A)) relu(g); cancelling g^2 keeps them exact where g^3 would vanish in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchcam.methods import GradCAM, GradCAMpp, LayerCAM, XGradCAM

from idsds.common.batching import in_batches
from idsds.common.randomness import Draws
from idsds.common.registry import UnknownNameError
from idsds.methods.base import Passes, register_method
from idsds.methods.transformer import is_transformer, transformer_grad_cam
from idsds.models.base import describe

EPSILON = 1e-8  # torchcam's, in the denominator of SG-CAM++
EXTRACTORS = {"Grad-CAM": GradCAM, "Grad-CAM++": GradCAMpp, "XGrad-CAM": XGradCAM, "Layer-CAM": LayerCAM}


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
    if is_transformer(model):
        return "it reads a convolutional layer; of the CAMs, only Grad-CAM is defined on attention"
    if entry.cam_layer is None and entry.family != "own":
        return f"the {entry.family} family has no CAM layer"
    return None


def no_grad_cam(model: nn.Module) -> str | None:
    """Why Grad-CAM does not apply to a model: it has a version for attention as well."""
    return None if is_transformer(model) else no_cam_layer(model)


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


def activations_and_gradients(model: nn.Module, layer: str, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's output and the gradient of the target logit there, (B, K, h, w) each, in the precision of the images: weights take powers
    of the gradient, which under autocast would leave the range of 16 bits.

    Raises:
        ValueError: where the layer does not run exactly once, or does not give feature maps.
    """
    outputs: list[Tensor] = []
    with torch.enable_grad(), graph_from(model.get_submodule(layer), outputs):
        scores = model(images)
        if len(outputs) != 1 or outputs[0].ndim != 4:
            shapes = [tuple(output.shape) for output in outputs]
            raise ValueError(f"CAMs need a layer that gives feature maps (B, K, h, w) once per pass; {layer!r} gave {shapes}")
        gradients = torch.autograd.grad(scores.gather(1, targets[:, None]).sum(), outputs)
    return outputs[0].detach().to(images.dtype), gradients[0].to(images.dtype)


def weighted(weights: Tensor, activations: Tensor) -> Tensor:
    """relu(sum_k weights A), (B, K, h or 1, w or 1) and (B, K, h, w) -> (B, h, w)."""
    return (weights * activations).sum(dim=1).relu()


def total(values: Tensor) -> Tensor:
    """Sum over positions, (B, K, h, w) -> (B, K, 1, 1)."""
    return values.sum(dim=(2, 3), keepdim=True)


def resized(maps: Tensor, images: Tensor) -> Tensor:
    """(B, M, h, w) -> (B, M, H, W), bilinear with half-pixel centres."""
    return F.interpolate(maps, size=images.shape[-2:], mode="bilinear", align_corners=False)


def cam_weights(model: nn.Module, layer: str, activations: Tensor, gradients: Tensor) -> dict[str, Tensor]:
    """The weights of each method, (B, K, h or 1, w or 1); formulas in this module's docstring."""
    weights = {}
    for name, extractor_class in EXTRACTORS.items():
        with extractor_class(model, layer, enable_hooks=False) as extractor:
            # Torchcam would do a backward pass of its own for each method: hand it the one that they share.
            extractor._backprop = lambda *args, **kwargs: None
            extractor.hook_a, extractor.hook_g = [activations], [gradients]
            (found,) = extractor._get_weights(0, None)
        weights[name] = found[(...,) + (None,) * (activations.ndim - found.ndim)]
    positive = gradients.relu()
    weights["Grad-CAM++ (paper)"] = total(torch.where(positive > 0, positive / (2 + positive * total(activations)), 0))
    return weights


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
def cams(model: nn.Module, images: Tensor, targets: Tensor, *, layer: str | None = None, batch: int) -> dict[str, Tensor]:
    """All CAMs of one layer; on a vision transformer Grad-CAM of the last block's attention.

    Args:
        model: returns logits.
        images: (B, C, H, W).
        targets: (B,).
        layer: dotted name of a module that gives feature maps; None: the one of the model's entry.
        batch: images per pass.
    """
    if is_transformer(model):
        return {"Grad-CAM": in_batches(lambda *some: transformer_grad_cam(model, *some), images, targets, size=batch)}
    name = cam_layer(model, layer)
    names: list[str] = []

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        activations, gradients = activations_and_gradients(model, name, images, targets)
        weights = cam_weights(model, name, activations, gradients)
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
    samples: int = 4,
    sigma: float = 0.3,
    noise: Tensor | None = None,
    draws: Draws,
    batch: int,
) -> dict[str, Tensor]:
    """Grad-CAM++ with gradients averaged over noisy copies of the image.

    With Dp the mean over the samples of g^p, and A the activations of the clean image, the paper has

        alpha = D1 / (2 D2 + D3 sum(A)),  weights = sum(alpha relu(D1)),  map = relu(sum_k weights A).

    ``SG-CAM++`` is what the published numbers were made with, torchcam's version: alpha = D2 / (2 D2 + sum(D3 A) + 1e-8); relu takes the
    gradient, and the map the activations, of the last noisy copy alone.

    Args:
        model: returns logits.
        images: (B, C, H, W).
        targets: (B,).
        layer: dotted name of a module that gives feature maps; None: the one of the model's entry.
        samples: noisy copies per image.
        sigma: standard deviation of the noise, in the units of the images.
        noise: standard normal numbers (B, samples, C, H, W) in place of drawn ones.
        draws: the noise.
        batch: images per pass.
    """
    draws.given = noise
    drawn, name = draws.normal(samples), cam_layer(model, layer)

    def clean(images: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        with graph_from(model.get_submodule(name), outputs), torch.no_grad():
            model(images)
        return outputs[0].detach().to(images.dtype)

    def attribute(images: Tensor, targets: Tensor, drawn: Tensor) -> Tensor:
        reference = clean(images)
        moments = [torch.zeros_like(reference) for _ in range(3)]
        for sample in range(samples):
            activations, gradients = activations_and_gradients(model, name, images + sigma * drawn[:, sample], targets)
            for power, moment in enumerate(moments, start=1):
                moment += gradients**power / samples
        first, second, third = moments
        as_torchcam = total(second / (2 * second + total(third * reference) + EPSILON) * gradients.relu())
        denominator = 2 * second + third * total(reference)
        as_paper = total(torch.where((first > 0) & (denominator != 0), first / denominator * first, 0))
        return torch.stack([weighted(as_torchcam, activations), weighted(as_paper, reference)], dim=1)  # (B, 2, h, w)

    maps = resized(in_batches(attribute, images, targets, drawn, size=batch), images)
    return {"SG-CAM++": maps[:, 0], "SG-CAM++ (paper)": maps[:, 1]}
