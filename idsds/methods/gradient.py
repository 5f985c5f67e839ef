"""The gradient family: the gradient, input times gradient, integrated gradients, GradientSHAP, and SmoothGrad over the first three.

Captum is not used here: its NoiseTunnel and GradientShap draw from global generators, so that an image's map would depend on its batch,
and on small nets its overhead exceeds the cost of the passes. Here noise is keyed per image, and one set of noisy passes yields the mean,
the mean square and the variance.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from idsds.common.batching import in_batches
from idsds.common.randomness import Draws
from idsds.common.registry import UnknownNameError
from idsds.methods.base import Passes, register_method
from idsds.models.base import describe

STEPS = 50
# The reference runs captum's NoiseTunnel with 4 samples and the default standard deviation, 1.0 in normalised units.
SAMPLES, SIGMA = 4, 1.0
# The xai-correlation study runs its methods in NoiseTunnel with 8 samples.
STUDY_SMOOTHGRAD = {"samples": 8}
# Smilkov et al. recommend 50 samples and a sigma of 10 to 20 % of the image's range.
PAPER_SMOOTHGRAD = {"samples": 50, "sigma": 0.15, "relative": True}

SMOOTHGRAD = {
    "-SG": "Smilkov et al., 2017 (SmoothGrad)",
    "-SG-SQ": "Hooker et al., NeurIPS 2019 (SmoothGrad squared)",
    "-SG-VG": "Adebayo et al., NeurIPS 2018 (VarGrad)",
}


def gradients(model: nn.Module, images: Tensor, targets: Tensor, batch: int) -> Tensor:
    """Return the gradient of the target logit at the input, (B, C, H, W)."""
    with torch.enable_grad():
        return in_batches(partial(_gradient, model), images.detach(), targets, size=batch)


def _gradient(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    # A new view, so that the caller's images do not start to require a gradient.
    images = images.detach().requires_grad_()
    logits = model(images)  # (B, K)
    # Images do not affect each other, so the gradient of the sum contains each image's gradient.
    return torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), images)[0].detach()


def integrated_gradients(model: nn.Module, images: Tensor, targets: Tensor, baseline: Tensor, steps: int, batch: int) -> Tensor:
    """Return (input - baseline) times the mean gradient on the straight path between them, by Gauss-Legendre quadrature.

    As in captum, but a pass holds up to ``batch`` images, so that small batches share passes, and gradients are summed as they come.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    shares, weights = (torch.from_numpy(numbers / 2).to(images) for numbers in (1 + nodes, weights))  # on [0, 1]

    def attribute(images: Tensor, targets: Tensor, baseline: Tensor) -> Tensor:
        difference, total = images - baseline, torch.zeros_like(images)
        together = max(1, batch // len(images))  # steps per pass
        for start in range(0, steps, together):
            share, weight = shares[start : start + together], weights[start : start + together]
            points = [torch.addcmul(baseline, difference, each) for each in share]
            several = len(points) > 1
            found = _gradient(model, torch.cat(points) if several else points[0], targets.repeat(len(points)) if several else targets)
            for each, gradient in zip(weight, found.split(len(images)), strict=True):
                total.addcmul_(gradient, each)
        return total * difference

    with torch.enable_grad():
        return in_batches(attribute, images.detach(), targets, baseline.expand_as(images), size=batch)


def path_start(baseline: str | Tensor, model: nn.Module, draws: Draws) -> Tensor:
    """Return the start of the path of integrated gradients, (1 or B, C, H, W).

    Args:
        baseline: ``zeros``; ``uniform``, one noise image in [-1, 1] for all images, as in the reference, whatever the model's input
            range; ``uniform per image``, noise drawn for each image in [0, 1] before the model's normalisation (in [-1, 1] after it if
            the normalisation is unknown); or a tensor that broadcasts to the images.

    Raises:
        UnknownNameError: for any other name.
    """
    match baseline:
        case Tensor():
            return baseline.to(draws.images)
        case "zeros":
            return torch.zeros_like(draws.images[:1])
        case "uniform":
            return 2 * draws.fixed_uniform() - 1
        case "uniform per image":
            noise, normalisation = draws.uniform(1, key="path start")[:, 0], describe(model).normalisation
            return 2 * noise - 1 if normalisation is None else normalisation(noise)
        case _:
            raise UnknownNameError("baseline of integrated gradients", baseline, ("zeros", "uniform", "uniform per image"))


def part(draws: Draws, start: int, stop: int) -> Draws:
    """Return the random numbers for a slice of the batch."""
    given = None if draws.given is None else draws.given[start:stop]
    return Draws(draws.seed, draws.key, draws.images[start:stop], draws.image_ids[start:stop], given=given)


def smoothed(
    attribute: Callable[[Tensor, Tensor, slice], dict[str, Tensor]],
    images: Tensor,
    targets: Tensor,
    samples: int,
    sigma: float,
    relative: bool,
    draws: Draws,
    batch: int,
) -> dict[str, Tensor]:
    """Return the mean (``-SG``), mean square (``-SG-SQ``) and variance (``-SG-VG``) of attributions over noisy copies, per channel.

    Args:
        attribute: maps noisy images (B * samples, C, H, W), their targets and their slice of the batch to attributions of that shape, by
            method name.
        relative: whether sigma is a fraction of each image's range (maximum minus minimum) instead.
        batch: images per pass, which also bounds the number of noisy copies held at a time.
    """
    maps: dict[str, list[Tensor]] = {}
    step = max(1, batch // samples)
    for start in range(0, len(images), step):
        some = slice(start, start + step)
        clean = images[some, None]  # (b, 1, C, H, W)
        scale = sigma * (clean.amax((2, 3, 4), keepdim=True) - clean.amin((2, 3, 4), keepdim=True)) if relative else sigma
        noisy = clean + scale * part(draws, start, start + step).normal(samples)  # (b, samples, C, H, W)
        found = attribute(noisy.flatten(0, 1), targets[some].repeat_interleave(samples), some)
        for name, values in found.items():
            values = values.unflatten(0, (-1, samples))
            mean, square = values.mean(dim=1), values.square().mean(dim=1)
            for suffix, value in zip(SMOOTHGRAD, (mean, square, square - mean.square()), strict=True):
                maps.setdefault(name + suffix, []).append(value)
    return {name: torch.cat(parts) for name, parts in maps.items()}


@register_method(
    "Gradient",
    "IxG",
    "Saliency",
    "Saliency (paper)",
    family="gradient",
    passes=Passes(1, 1),
    source="Simonyan et al., 2014 (Gradient, Saliency); Shrikumar et al., 2016 (IxG)",
)
def gradient(model: nn.Module, images: Tensor, targets: Tensor, *, batch: int) -> dict[str, Tensor]:
    """Return the gradient, its product with the normalised input, and its absolute value, summed or maximal over channels (paper)."""
    found = gradients(model, images, targets, batch)
    size = found.abs()
    return {"Gradient": found, "IxG": found * images, "Saliency": size, "Saliency (paper)": size.amax(dim=1)}


def gradient_smoothed(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    samples: int = SAMPLES,
    sigma: float = SIGMA,
    relative: bool = False,
    draws: Draws,
    batch: int,
) -> dict[str, Tensor]:
    """Apply SmoothGrad to the gradient, its absolute value, and (noisy) input times gradient; for the options see :func:`smoothed`."""

    def attribute(noisy: Tensor, targets: Tensor, some: slice) -> dict[str, Tensor]:
        found = gradients(model, noisy, targets, batch)
        return {"Gradient": found, "IxG": found * noisy, "Saliency": found.abs()}

    return smoothed(attribute, images, targets, samples, sigma, relative, draws, batch)


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
    """Compute integrated gradients; for the baseline see :func:`path_start`."""
    return integrated_gradients(model, images, targets, path_start(baseline, model, draws), steps, batch)


def ig_smoothed(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    steps: int = STEPS,
    baseline: str | Tensor = "zeros",
    samples: int = SAMPLES,
    sigma: float = SIGMA,
    relative: bool = False,
    draws: Draws,
    batch: int,
) -> dict[str, Tensor]:
    """Apply SmoothGrad to integrated gradients, each sample multiplied by (noisy input - baseline)."""
    starts = path_start(baseline, model, draws).expand_as(images)

    def attribute(noisy: Tensor, targets: Tensor, some: slice) -> dict[str, Tensor]:
        return {"IG": integrated_gradients(model, noisy, targets, starts[some].repeat_interleave(samples, dim=0), steps, batch)}

    return smoothed(attribute, images, targets, samples, sigma, relative, draws, batch)


def gradient_shap_smoothed(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    samples: int = 8,
    sigma: float = SIGMA,
    relative: bool = False,
    baseline_samples: int = 5,
    baselines: Tensor | None = None,
    draws: Draws,
    batch: int,
) -> dict[str, Tensor]:
    """Apply SmoothGrad to :func:`gradient_shap`, with separate baselines and positions for each noisy copy."""

    def attribute(noisy: Tensor, targets: Tensor, some: slice) -> dict[str, Tensor]:
        ids = [f"{image_id} {sample}" for image_id in draws.image_ids[some] for sample in range(samples)]
        drawn = Draws(draws.seed, draws.key, noisy, ids)
        found = gradient_shap(model, noisy, targets, samples=baseline_samples, baselines=baselines, draws=drawn, batch=batch)
        return {"GradientSHAP": found}

    return smoothed(attribute, images, targets, samples, sigma, relative, draws, batch)


@register_method(
    "GradientSHAP",
    family="gradient",
    passes=lambda model, samples, **_: Passes(1, 1).times(samples),
    source="Lundberg and Lee, NeurIPS 2017; Erion et al., Nature Machine Intelligence 2021 (expected gradients)",
)
def gradient_shap(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    samples: int = 5,
    baselines: Tensor | None = None,
    positions: Tensor | None = None,
    draws: Draws,
    batch: int,
) -> Tensor:
    """Return the mean of (x - b) * gradient at b + a (x - b) over random baselines b and positions a in [0, 1].

    Args:
        samples: baselines per image; 5 is captum's default.
        baselines: images (N, C, H, W) to draw from with equal probability; None for uniform noise in [-1, 1].
        positions: a, (B, samples), instead of random ones.
    """
    if positions is not None and positions.shape != (shape := (len(images), samples)):
        raise ValueError(f"GradientSHAP: positions have shape {tuple(positions.shape)}, wanted {shape}")
    if baselines is not None and baselines.shape[1:] != images.shape[1:]:
        raise ValueError(f"GradientSHAP: baselines of shape {tuple(baselines.shape)} for images {tuple(images.shape)}; wanted (N, C, H, W)")
    maps = []
    step = max(1, batch // samples)
    for start in range(0, len(images), step):
        some, noise = slice(start, start + step), part(draws, start, start + step)
        starts = noise.uniform(samples, key="baselines")  # (b, samples, C, H, W)
        # One of each sample's random numbers selects the baseline.
        if baselines is None:
            starts = 2 * starts - 1
        else:  # rounding may turn a number below 1, multiplied by N, into N
            starts = baselines.to(images)[(starts[..., 0, 0, 0] * len(baselines)).long().clamp(max=len(baselines) - 1)]
        difference = images[some, None] - starts
        share = noise.uniform(samples, key="positions")[..., 0, 0, 0] if positions is None else positions[some].to(images)
        path = starts + share[..., None, None, None] * difference
        found = gradients(model, path.flatten(0, 1), targets[some].repeat_interleave(samples), batch)
        maps.append((difference * found.view_as(difference)).mean(dim=1))
    return torch.cat(maps)


def _register() -> None:
    ig_source = "Sundararajan et al., ICML 2017"
    uniform = {"baseline": "uniform"}
    register_method(
        "IG",
        family="gradient",
        variants={"IG-U": uniform, "IG-U (paper)": {"baseline": "uniform per image"}},
        passes=lambda model, steps, **_: Passes(1, 1).times(steps),
        noise="uniform baseline",
        source=f"{ig_source}; Sturmfels et al., Distill 2020 (uniform baseline)",
    )(ig)
    register_method(
        "Saliency-SG",
        family="gradient",
        options=STUDY_SMOOTHGRAD,
        passes=lambda model, samples, **_: Passes(1, 1).times(samples),
        noise="SmoothGrad",
        source=f"Simonyan et al., 2014; {SMOOTHGRAD['-SG']}",
    )(gradient_smoothed)
    register_method(
        "GradientSHAP-SG",
        family="gradient",
        passes=lambda model, samples, baseline_samples, **_: Passes(1, 1).times(samples * baseline_samples),
        noise="SmoothGrad",
        source=f"Lundberg and Lee, NeurIPS 2017; {SMOOTHGRAD['-SG']}",
    )(gradient_shap_smoothed)
    for suffix, source in SMOOTHGRAD.items():
        paper = suffix + " (paper)"
        for name in ("Gradient", "IxG"):
            register_method(
                name + suffix,
                family="gradient",
                variants={name + paper: PAPER_SMOOTHGRAD},
                output=name + suffix,
                passes=lambda model, samples, **_: Passes(1, 1).times(samples),
                noise="SmoothGrad",
                source=source,
            )(gradient_smoothed)
        register_method(
            "IG" + suffix,
            family="gradient",
            variants={"IG-U" + suffix: uniform, "IG" + paper: PAPER_SMOOTHGRAD, "IG-U" + paper: {**uniform, **PAPER_SMOOTHGRAD}},
            output="IG" + suffix,
            passes=lambda model, steps, samples, **_: Passes(1, 1).times(steps * samples),
            noise="SmoothGrad",
            source=f"{ig_source}; {source}",
        )(ig_smoothed)


_register()
