"""The gradient family: the gradient, input times gradient, integrated gradients, and SmoothGrad over each of them.

Captum computes the attributions. Its NoiseTunnel is not used: it draws from the global generator, so that a batch would not give what its
images give alone; the noise here is keyed per image, and one set of noisy passes yields the mean, the mean square and the variance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from captum.attr import IntegratedGradients, Saliency
from torch import Tensor, nn

from idsds.batching import in_batches
from idsds.methods.base import Passes, register_method
from idsds.randomness import Draws
from idsds.registry import UnknownNameError

# The reference runs captum's NoiseTunnel with 4 samples and leaves the noise at its default, 1.0 in normalised units.
SAMPLES, SIGMA, STEPS = 4, 1.0, 50

SMOOTHGRAD = {
    "-SG": "Smilkov et al., 2017 (SmoothGrad)",
    "-SG-SQ": "Hooker et al., NeurIPS 2019 (SmoothGrad squared)",
    "-SG-VG": "Adebayo et al., 2018 (VarGrad)",
}


def gradients(model: nn.Module, images: Tensor, targets: Tensor, batch: int) -> Tensor:
    """The gradient of the target logit at the input, (B, C, H, W)."""
    saliency = Saliency(model)

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        # A copy: captum marks the tensor that it is given as requiring a gradient.
        return saliency.attribute(images.clone().requires_grad_(), target=targets, abs=False).detach()

    return in_batches(attribute, images.detach(), targets, size=batch)


def integrated_gradients(model: nn.Module, images: Tensor, targets: Tensor, baseline: Tensor, steps: int, batch: int) -> Tensor:
    """(input - baseline) times the mean gradient on the straight path between them, (B, C, H, W); Gauss-Legendre with ``steps`` points."""
    method = IntegratedGradients(model)

    def attribute(images: Tensor, targets: Tensor, baseline: Tensor) -> Tensor:
        found = method.attribute(images, baselines=baseline, target=targets, n_steps=steps, internal_batch_size=batch)
        return found.detach().to(images.dtype)

    # Captum cuts its internal batch along the steps only: one step of all images must fit.
    return in_batches(attribute, images.detach(), targets, baseline.expand_as(images), size=batch)


def path_start(baseline: str | Tensor, draws: Draws) -> Tensor:
    """Where the path of integrated gradients starts, (1 or B, C, H, W).

    Args:
        baseline: ``zeros``; ``uniform``: one fixed image of noise in [-1, 1] for all images, as in the reference; ``uniform per image``;
            or a tensor that broadcasts to the images.
    """
    match baseline:
        case Tensor():
            return baseline.to(draws.images)
        case "zeros":
            return torch.zeros_like(draws.images[:1])
        case "uniform":
            return 2 * draws.fixed_uniform() - 1
        case "uniform per image":
            return 2 * draws.uniform(1)[:, 0] - 1
        case _:
            raise UnknownNameError("baseline of integrated gradients", baseline, ("zeros", "uniform", "uniform per image"))


def smoothed(
    attribute: Callable[[Tensor, Tensor], dict[str, Tensor]],
    images: Tensor,
    targets: Tensor,
    samples: int,
    sigma: float,
    noise: Tensor | None,
    draws: Draws,
) -> dict[str, Tensor]:
    """Mean (``-SG``), mean square (``-SG-SQ``) and variance (``-SG-VG``) of attributions over noisy copies, before channels are summed.

    Args:
        attribute: from noisy images (B * samples, C, H, W) and their targets to attributions of that shape, by method name.
        noise: standard normal numbers (B, samples, C, H, W) to use in place of drawn ones.
    """
    draws.given = noise
    noisy = images[:, None] + sigma * draws.normal(samples)  # (B, samples, C, H, W)
    found = attribute(noisy.flatten(0, 1), targets.repeat_interleave(samples))
    maps = {}
    for name, attributions in found.items():
        attributions = attributions.unflatten(0, (len(images), samples))  # (B, samples, C, H, W)
        mean, square = attributions.mean(dim=1), attributions.square().mean(dim=1)
        maps |= {f"{name}-SG": mean, f"{name}-SG-SQ": square, f"{name}-SG-VG": square - mean.square()}
    return maps


@register_method(
    "Gradient",
    "IxG",
    family="gradient",
    passes=Passes(1, 1),
    source="Simonyan et al., 2014 (Gradient); Shrikumar et al., 2016 (IxG)",
)
def gradient(model: nn.Module, images: Tensor, targets: Tensor, *, batch: int) -> dict[str, Tensor]:
    """The signed gradient, and its product with the normalised input, from one backward pass."""
    found = gradients(model, images, targets, batch)
    return {"Gradient": found, "IxG": found * images}


def gradient_smoothed(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    samples: int = SAMPLES,
    sigma: float = SIGMA,
    noise: Tensor | None = None,
    draws: Draws,
    batch: int,
) -> dict[str, Tensor]:
    """SmoothGrad over the gradient and over input times gradient, where the input is the noisy one."""

    def attribute(noisy: Tensor, targets: Tensor) -> dict[str, Tensor]:
        found = gradients(model, noisy, targets, batch)
        return {"Gradient": found, "IxG": found * noisy}

    return smoothed(attribute, images, targets, samples, sigma, noise, draws)


def ig(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    steps: int = STEPS,
    baseline: str | Tensor = "zeros",
    draws: Draws,
    batch: int,
) -> Tensor:
    """Integrated gradients."""
    return integrated_gradients(model, images, targets, path_start(baseline, draws), steps, batch)


def ig_smoothed(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    steps: int = STEPS,
    baseline: str | Tensor = "zeros",
    samples: int = SAMPLES,
    sigma: float = SIGMA,
    noise: Tensor | None = None,
    draws: Draws,
    batch: int,
) -> dict[str, Tensor]:
    """SmoothGrad over integrated gradients, each sample multiplied by (noisy input - baseline)."""
    start = path_start(baseline, draws)

    def attribute(noisy: Tensor, targets: Tensor) -> dict[str, Tensor]:
        path = start.expand_as(images).repeat_interleave(samples, dim=0)
        found = integrated_gradients(model, noisy, targets, path, steps, batch)
        return {"IG": found, "IG-U": found}

    return smoothed(attribute, images, targets, samples, sigma, noise, draws)


def _register() -> None:
    ig_source = "Sundararajan et al., ICML 2017"
    starts = {"IG": "zeros", "IG-U": "uniform"}
    for name, baseline in starts.items():
        register_method(
            name,
            family="gradient",
            options={"baseline": baseline},
            passes=lambda model, steps, **_: Passes(1, 1).times(steps),
            noise="uniform baseline",
            source=ig_source,
        )(ig)
    for suffix, source in SMOOTHGRAD.items():
        for name in ("Gradient", "IxG"):
            register_method(
                name + suffix,
                family="gradient",
                passes=lambda model, samples, **_: Passes(1, 1).times(samples),
                noise="SmoothGrad",
                source=source,
            )(gradient_smoothed)
        for name, baseline in starts.items():
            register_method(
                name + suffix,
                family="gradient",
                options={"baseline": baseline},
                passes=lambda model, steps, samples, **_: Passes(1, 1).times(steps * samples),
                noise="SmoothGrad",
                source=f"{ig_source}; {source}",
            )(ig_smoothed)


_register()
