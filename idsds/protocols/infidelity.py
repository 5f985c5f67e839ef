"""Infidelity and max-sensitivity, equal to captum's for the same perturbations.

Infidelity asks whether a map predicts how the logit changes under a perturbation; max-sensitivity, how much the map itself changes under
a small one. Perturbations are keyed by the image's id and the same for every method; each method runs with its own settings and random
numbers.

Source: Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019 (arXiv 1901.09392).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from idsds.common.batching import default_batch, in_batches
from idsds.common.numbers import as_whole
from idsds.common.randomness import Draws
from idsds.common.registry import check_name
from idsds.methods.base import Method, Passes, shared_maps, shared_passes
from idsds.methods.maps import as_map, check_batch
from idsds.models.base import frozen
from idsds.protocols.base import Batch, Columns, Prepared, register_protocol

Perturbation = Literal["gaussian", "square"]


def infidelity(
    model: Callable[[Tensor], Tensor],
    maps: Tensor,
    images: Tensor,
    targets: Tensor,
    *,
    perturbation: Perturbation = "gaussian",
    sigma: float = 0.1,
    samples: int = 10,
    normalise: bool = False,
    seed: int = 0,
    image_ids: Sequence[object] | None = None,
) -> Tensor:
    """Score the mean squared difference between the change predicted by the map and the change of the logit.

    ``infidelity[b] = mean over samples of (sum(I * maps[b]) - (f(x_b) - f(x_b - d)))^2``

    For ``gaussian`` noise d = I, equal in all channels: a map is read as a gradient. For a removed ``square`` d = I * x_b, where I is 1
    inside it: a map is read as contributions, such as input times gradient. For a linear model, the gradient and the contributions
    have infidelity 0.

    Args:
        model: returns logits (B, K); a net is run in eval mode.
        maps: (B, 1, H, W), summed over channels.
        images, targets: float (B, 3, H, W), normalised, and (B,).
        perturbation: ``gaussian`` or ``square``.
        sigma: standard deviation of the noise, in normalised units; or the square's side as a fraction of the image's side.
        normalise: multiply each map by the factor that minimises its infidelity, so that neither scale nor sign matters: the factor may
            be negative, so a map and its negation get the same score.
        seed, image_ids: key the perturbations.

    Returns:
        (B,), 0 or more, in squared logits; lower is better. NaN where the map or the logits have a NaN.

    Raises:
        UnknownNameError: for an unknown perturbation.
        ValueError: if ``samples`` is below 1, ``sigma`` is not above 0, or the maps do not fit the images.
    """
    check_batch(images, targets, image_ids)
    weights, changes = perturbations(images, perturbation, sigma, samples, seed=seed, image_ids=image_ids)
    maps = as_map("maps", maps, images).to(images.dtype)
    raw, normalised = _from_changes(maps, weights[:, :1], _logit_changes(model, images, targets, changes, samples))
    return normalised if normalise else raw


def perturbations(
    images: Tensor, perturbation: Perturbation, sigma: float, samples: int, *, seed: int = 0, image_ids: Sequence[object] | None = None
) -> tuple[Tensor, Tensor]:
    """Return the map's weights I and the image's changes d, (B * samples, C, H, W) each, with an image's samples consecutive."""
    check_name("perturbation", perturbation, get_args(Perturbation))
    as_whole("samples", samples)
    if not sigma > 0 or (perturbation == "square" and sigma > 1):
        allowed = "in (0, 1], a fraction of the image's side," if perturbation == "square" else "above 0"
        raise ValueError(f"sigma must be {allowed} for {perturbation!r}, not {sigma!r}")
    draws = Draws(seed, f"infidelity {perturbation}", images, image_ids)
    channels, height, width = images.shape[1:]
    if perturbation == "gaussian":
        weights = (sigma * draws.normal(samples)[:, :, :1]).flatten(0, 1).expand(-1, channels, -1, -1)  # one channel for all
        return weights, weights
    corner = draws.uniform(samples)[:, :, 0, 0, :2].flatten(0, 1)  # (B * samples, 2), in [0, 1)
    sides = [max(1, round(sigma * side)) for side in (height, width)]
    inside = []
    for axis, (side, length) in enumerate(zip(sides, (height, width), strict=True)):
        start = (corner[:, axis : axis + 1] * (length - side + 1)).floor()
        position = torch.arange(length, device=images.device)
        inside.append((position >= start) & (position < start + side))  # (B * samples, length)
    mask = (inside[0][:, :, None] & inside[1][:, None, :]).to(images)[:, None].expand(-1, channels, -1, -1)
    return mask, mask * images.repeat_interleave(samples, dim=0)


def logit_changes(
    model: nn.Module,
    batch: Batch,
    *,
    perturbation: Perturbation = "gaussian",
    sigma: float = 0.1,
    samples: int = 10,
    seed: int = 0,
    **_: Any,
) -> dict[str, Tensor]:
    """Compute the change of the target's logit under each perturbation, ``logit_changes`` (B, samples): f(x) - f(x - d)."""
    images = batch.images
    _, changes = perturbations(images, perturbation, sigma, samples, seed=seed, image_ids=batch.image_ids)
    return {"logit_changes": _logit_changes(model, images, batch.targets, changes, samples)}


def _logit_changes(model: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor, changes: Tensor, samples: int) -> Tensor:
    """Return f(x) - f(x - d) for ``changes`` d (B * samples, C, H, W), as (B, samples)."""
    size = 2 * default_batch(images)  # without a graph, twice as many images fit, and are faster

    def perturbed(images: Tensor, targets: Tensor, changes: Tensor) -> Tensor:  # some at a time: never all perturbed images at once
        logits = [model((images[:, None] - some).flatten(0, 1)).unflatten(0, some.shape[:2]) for some in changes.split(size, dim=1)]
        return torch.cat(logits, dim=1).gather(2, targets[:, None, None].expand(-1, samples, 1))[..., 0]

    with torch.inference_mode(), frozen(model) if isinstance(model, nn.Module) else nullcontext():
        intact = in_batches(model, images, size=size).gather(1, targets[:, None])
        by_image = changes.unflatten(0, (len(images), samples))
        return intact - in_batches(perturbed, images, targets, by_image, size=max(1, size // samples))


def _from_changes(maps: Tensor, weights: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the infidelity of maps (B, 1, H, W) under weights (B * samples, 1, H, W), unscaled and with the best factor, (B,) each.

    In float64, because in float32 the infidelity of an exact map would be rounding error.
    """
    predicted = (weights.view(*changes.shape, -1).double() @ maps.flatten(1).double()[:, :, None])[:, :, 0]  # (B, samples)
    changes = changes.double()
    power = predicted.square().sum(dim=1, keepdim=True)
    factor = (predicted * changes).sum(dim=1, keepdim=True) / power.masked_fill(power == 0, 1)
    raw, normalised = ((scale * predicted - changes).square().mean(dim=1) for scale in (1, factor))
    return raw.to(maps.dtype), normalised.to(maps.dtype)


@register_protocol(
    "infidelity",
    higher_is_better=False,
    range=(0, float("inf")),
    prepare=logit_changes,
    prepare_passes=lambda *, samples=10, **_: Passes(samples + 1),
    source="Yeh et al., NeurIPS 2019",
)
def infidelity_protocol(
    model: nn.Module,
    methods: Sequence[Method],
    batch: Batch,
    prepared: Prepared,
    *,
    perturbation: Perturbation = "gaussian",
    sigma: float = 0.1,
    samples: int = 10,
    normalise: bool = False,
) -> Columns:
    """Score infidelity, 0 or more, lower is better; arguments as for :func:`infidelity`, ``prepared`` as from :func:`logit_changes`.

    Columns ``score`` and, whatever ``normalise`` is, ``raw``, which depends on the map's scale, and ``normalised``, which depends on
    neither its scale nor its sign.
    """
    images, targets, ids = batch.images, batch.targets, batch.image_ids
    weights, _ = perturbations(images, perturbation, sigma, samples, seed=methods[0].seed, image_ids=ids)
    columns = {}
    for name, found in shared_maps(methods, images, targets, ids).items():
        raw, normalised = _from_changes(found, weights[:, :1], prepared["logit_changes"])
        columns[name] = {"score": normalised if normalise else raw, "raw": raw, "normalised": normalised}
    return columns


def max_sensitivity(
    method: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    radius: float = 0.02,
    samples: int = 10,
    normalise: bool = True,
    seed: int = 0,
    image_ids: Sequence[object] | None = None,
) -> Tensor:
    """Score the largest change of a map over perturbations drawn from the L-infinity ball of ``radius``.

    ``max_sensitivity[b] = max over samples of |maps(x_b + d) - maps(x_b)| / |maps(x_b)|``, Euclidean norms, d uniform in the ball.

    Args:
        method: maps images (N, 3, H, W) to attributions (N, 1, H, W); called first with the B images, then with perturbed ones, as many
            samples of every image at a time as make a good batch, an image's samples consecutively.
        images: float (B, 3, H, W), normalised.
        radius: the ball's radius, in normalised units.
        normalise: divide by the norm of the intact image's map, as captum does (a norm of zero counts as 1); otherwise the score follows
            the paper's definition and grows with the map's scale.
        seed, image_ids: key the perturbations.

    Returns:
        (B,), 0 or more; lower is better. NaN where a map has a NaN.

    Raises:
        ValueError: if ``samples`` is below 1 or ``radius`` is not above 0.
    """
    raw, normalised = _map_changes(lambda images: {"": method(images)}, images, radius, samples, seed=seed, image_ids=image_ids)[""]
    return normalised if normalise else raw


def _map_changes(
    explain: Callable[[Tensor], Mapping[str, Tensor]], images: Tensor, radius: float, samples: int, **keys: Any
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return by method the norm of the largest change of its map, unscaled and over the norm of the intact image's map, (B,) each."""
    as_whole("samples", samples)
    if not radius > 0:
        raise ValueError(f"radius must be above 0, not {radius!r}")
    uniform = Draws(keys["seed"], "max-sensitivity", images, keys["image_ids"]).uniform(samples)  # (B, samples, C, H, W)
    distances: dict[str, list[Tensor]] = defaultdict(list)
    with torch.enable_grad():
        intact = {name: maps.detach().flatten(1) for name, maps in explain(images).items()}  # (B, H * W)
        for some in uniform.split(max(1, default_batch(images) // len(images)), dim=1):
            noisy = some.mul_(2).sub_(1).mul_(radius).add_(images[:, None])
            for name, maps in explain(noisy.flatten(0, 1)).items():
                changed = maps.detach().flatten(1).unflatten(0, some.shape[:2]) - intact[name][:, None]
                distances[name].append(changed.norm(dim=2))
    largest = {name: torch.cat(each, dim=1).amax(dim=1) for name, each in distances.items()}
    norms = {name: maps.norm(dim=1) for name, maps in intact.items()}
    return {name: (raw, raw / norms[name].masked_fill(norms[name] == 0, 1)) for name, raw in largest.items()}


@register_protocol(
    "max_sensitivity",
    higher_is_better=False,
    range=(0, float("inf")),
    passes=lambda methods, *, samples=10, **_: shared_passes(methods).times(samples + 1),
    asks="stable",
    source="Yeh et al., NeurIPS 2019",
)
def max_sensitivity_protocol(
    model: nn.Module,
    methods: Sequence[Method],
    batch: Batch,
    prepared: Prepared,
    *,
    radius: float = 0.02,
    samples: int = 10,
    normalise: bool = True,
) -> Columns:
    """Score max-sensitivity, 0 or more, lower is better; arguments as for :func:`max_sensitivity`.

    A map that never changes, such as that of a control, is perfectly insensitive. Columns ``score``, ``raw`` and ``normalised``. The
    perturbed copies of an image keep its id, so that a method's own noise is the same for all of them.
    """

    def explain(images: Tensor) -> dict[str, Tensor]:
        copies = len(images) // len(batch.images)
        ids = [image_id for image_id in batch.image_ids for _ in range(copies)]
        return shared_maps(methods, images, batch.targets.repeat_interleave(copies), ids)

    # All methods in one pass over the noise: on a GPU the size of a batch depends on the memory that is free, which changes.
    found = _map_changes(explain, batch.images, radius, samples, seed=methods[0].seed, image_ids=batch.image_ids)
    columns = {}
    for name, (raw, normalised) in found.items():
        columns[name] = {"score": normalised if normalise else raw, "raw": raw, "normalised": normalised}
    return columns
