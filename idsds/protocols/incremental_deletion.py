"""Incremental deletion and insertion: the target's output while pixels or patches are deleted or inserted in the order of attribution.

Three variants are registered. ``incremental_deletion`` deletes the least attributed first, as reported in the IDSDS paper;
``incremental_deletion_descending`` the most attributed first (Samek et al., 2017); ``insertion`` starts from the baseline and restores the
most attributed first (RISE). With ``update`` the map is recomputed after each step, on the modified image.

Sources: Samek et al., "Evaluating the Visualization of What a Deep Neural Network Has Learned", TNNLS 2017 (arXiv 1509.06321);
Petsiuk, Das, Saenko, "RISE", BMVC 2018 (arXiv 1806.07421); Hesse, Schaub-Meyer, Roth, NeurIPS 2024 (arXiv 2407.11910).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from idsds.common.batching import default_batch, halving, in_batches
from idsds.common.interventions import BASELINES, baseline_images, patch_size
from idsds.common.randomness import content_ids
from idsds.common.registry import UnknownNameError
from idsds.methods.base import Method, Passes, as_map, check_batch, shared_maps, shared_passes
from idsds.models.base import frozen
from idsds.protocols.base import Batch, MeanOverImages, check_count, register_protocol
from idsds.protocols.single_deletion import Quantity, patch_sums

Order = Literal["ascending", "descending"]
Mode = Literal["deletion", "insertion"]
Units = Literal["pixels", "patches"]
Rule = Literal["mean", "trapezoid"]
ORDERS, MODES, UNITS, RULES, QUANTITIES = (get_args(names) for names in (Order, Mode, Units, Rule, Quantity))
# A method, a callable from (images, targets) to maps, or the maps themselves.
Explainer = Method | Callable[[Tensor, Tensor], Tensor] | Tensor


def incremental_deletion(
    model: nn.Module,
    method: Explainer,
    images: Tensor,
    targets: Tensor,
    steps: int = 32,
    order: Order = "ascending",
    baseline: str = "zeros",
    update: bool = False,
    *,
    rule: Rule = "mean",
    **settings: Any,
) -> Tensor:
    """Return the area under the curve of :func:`incremental_deletion_curve`, which explains the other arguments and ``settings``.

    Args:
        rule: ``mean`` of the curve's points without the fully deleted image, as in the IDSDS paper; or ``trapezoid`` over the whole
            curve, the last point included, as in RISE.

    Returns:
        (B,), in [0, 1] for probabilities. Higher is better for ``ascending`` deletion and for ``descending`` insertion, lower is better
        for the other two. Not divided by the output for the intact image. NaN where the curve has a NaN.
    """
    _check_names(rule=(rule, RULES))
    curves = incremental_deletion_curve(
        model, method, images, targets, steps, order, baseline, update, endpoint=rule == "trapezoid", **settings
    )
    return area_under_curve(curves, rule=rule)


def area_under_curve(curves: Tensor, *, rule: Rule = "mean") -> Tensor:
    """Return the area (B,) under curves (B, S) with evenly spaced points on [0, 1]: their ``mean``, or by the ``trapezoid`` rule."""
    _check_names(rule=(rule, RULES))
    if rule == "trapezoid":
        return torch.trapezoid(curves, dim=1) / (curves.shape[1] - 1)
    return curves.mean(dim=1)


def incremental_deletion_curve(
    model: nn.Module,
    method: Explainer,
    images: Tensor,
    targets: Tensor,
    steps: int = 32,
    order: Order = "ascending",
    baseline: str = "zeros",
    update: bool = False,
    *,
    mode: Mode = "deletion",
    units: Units = "pixels",
    grid: int = 4,
    quantity: Quantity = "probability",
    endpoint: bool = False,
    image_ids: Sequence[object] | None = None,
    seed: int = 0,
    batch: int | None = None,
) -> Tensor:
    """Return the target's output after each step.

    ``curve[b, k] = f(images[b] with its first floor(k * n / steps) units replaced)[targets[b]]``, k = 0 .. steps - 1, where the n units
    (pixels with all their channels, or patches) are sorted by attribution; equal ones keep their row-major order.

    Args:
        model: returns logits (B, K).
        method: an attribution method, a callable ``(images, targets) -> maps``, or the maps themselves, (B, 1, H, W).
        images: float (B, 3, H, W), normalised for the model.
        targets: (B,) class indices.
        steps: number of points of the curve.
        order: ``ascending``: the least attributed units first; ``descending``: the most attributed first.
        baseline: replaces a unit, always that of the original image: ``zeros`` (in normalised space), ``blur`` or ``uniform``.
        update: explain the image again after each step; units that were replaced stay replaced.
        mode: ``deletion`` starts from the image and replaces units by the baseline, ``insertion`` starts from the baseline.
        units: ``pixels``, or ``patches`` of a ``grid`` x ``grid`` grid in the order of their sums of attribution.
        grid: patches per side; must divide H and W.
        quantity: ``probability`` (softmax) as in both papers, or ``logit``.
        endpoint: add the last point, k = steps, at which all units are replaced.
        image_ids: one id per image, which keys random numbers.
        seed: of the ``uniform`` baseline.
        batch: images per forward pass; None bounds it by memory.

    Returns:
        (B, steps), or (B, steps + 1) with ``endpoint``; NaN from the step at which a map has a NaN, everywhere without ``update``.

    Raises:
        UnknownNameError: for an unknown order, baseline, mode, unit or quantity.
        ValueError: if ``steps`` is below 1, the grid does not divide the image, or ``update`` is asked of maps.
    """
    check_batch(images, targets, image_ids)
    _check_names(
        order=(order, ORDERS), mode=(mode, MODES), units=(units, UNITS), quantity=(quantity, QUANTITIES), baseline=(baseline, BASELINES)
    )
    check_count("steps", steps)
    if update and isinstance(method, Tensor):
        raise ValueError("update=True explains the image after each step: give the method, not its maps")
    height, width = images.shape[-2:]
    cell = (1, 1) if units == "pixels" else patch_size(height, width, grid)
    n = height * width if units == "pixels" else grid * grid
    counts = _counts(n, steps, endpoint)
    image_ids = content_ids(images) if image_ids is None else image_ids

    def explained(images: Tensor) -> Tensor:
        maps = _maps(method, images, targets, image_ids)
        return maps.flatten(1) if units == "pixels" else patch_sums(maps, grid)  # (B, n)

    def outputs(images: Tensor, targets: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = model(images)
            return (logits.softmax(dim=1) if quantity == "probability" else logits).gather(1, targets[:, None])[:, 0]

    def everything(size: int) -> Tensor:
        replacement = baseline_images(images, baseline, seed=seed, image_ids=image_ids)
        start, end = (images, replacement) if mode == "deletion" else (replacement, images)
        if update:
            return _updated_curve(explained, outputs, start, end, targets, counts, order, cell, size)
        importance = explained(images)
        place = _places(importance, order)
        distinct, index = torch.tensor(counts, device=images.device).unique(return_inverse=True)  # few patches, many steps: once each

        def points(pairs: Tensor) -> Tensor:
            image, count = pairs // len(distinct), distinct[pairs % len(distinct)]
            replaced = _as_mask(place[image] < count[:, None], images, cell)
            return outputs(torch.where(replaced, end[image], start[image]), targets[image])

        pairs = torch.arange(len(images) * len(distinct), device=images.device)
        curves = in_batches(points, pairs, size=size).view(len(images), -1)[:, index]  # (B, steps)
        return curves.masked_fill(importance.isnan().any(dim=1, keepdim=True), torch.nan)

    with frozen(model):
        found, _ = halving(everything, batch or default_batch(images))
    return found


def _updated_curve(
    explained: Callable[[Tensor], Tensor],
    outputs: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    end: Tensor,
    targets: Tensor,
    counts: Sequence[int],
    order: Order,
    cell: tuple[int, int],
    size: int,
) -> Tensor:
    """Return the curve (B, S) for which each step sorts by the map of the image that the previous step has left."""
    current, undefined, gone = start, torch.zeros(len(start), dtype=torch.bool, device=start.device), None
    curve = []
    for count in counts:
        if count:  # the first point is the start itself
            importance = explained(current)  # (B, n)
            undefined = undefined | importance.isnan().any(dim=1)
            if gone is not None:
                importance = importance.masked_fill(gone, -torch.inf if order == "ascending" else torch.inf)
            gone = _places(importance, order) < count
            current = torch.where(_as_mask(gone, start, cell), end, start)
        curve.append(in_batches(outputs, current, targets, size=size).masked_fill(undefined, torch.nan))
    return torch.stack(curve, dim=1)


def _counts(n: int, steps: int, endpoint: bool) -> list[int]:
    """Return how many of n units are replaced at each point of the curve."""
    return [k * n // steps for k in range(steps + endpoint)]


def _places(importance: Tensor, order: Order) -> Tensor:
    """Return the place of each unit in the order, (B, n) -> (B, n); equal units in the order of their index."""
    ordered = importance.argsort(dim=1, descending=order == "descending", stable=True)
    return ordered.argsort(dim=1)


def _as_mask(units: Tensor, images: Tensor, cell: tuple[int, int]) -> Tensor:
    """Return units (B, n) as a mask of pixels (B, 1, H, W)."""
    rows, columns = images.shape[-2] // cell[0], images.shape[-1] // cell[1]
    mask = units.view(len(units), 1, rows, columns)
    return mask if cell == (1, 1) else mask.repeat_interleave(cell[0], dim=2).repeat_interleave(cell[1], dim=3)


def _maps(method: Explainer, images: Tensor, targets: Tensor, image_ids: Sequence[object]) -> Tensor:
    """Return the maps (B, 1, H, W) of any kind of explainer."""
    if isinstance(method, Tensor):
        return as_map("maps", method, images)
    if isinstance(method, Method):
        return method(images, targets, image_ids)
    return as_map(getattr(method, "__name__", type(method).__name__), method(images, targets), images)


def _check_names(**given: tuple[str, Iterable[str]]) -> None:
    for kind, (name, allowed) in given.items():
        if name not in allowed:
            raise UnknownNameError(kind, name, allowed)


def _passes(
    methods: Sequence[Method],
    *,
    steps: int = 32,
    update: bool = False,
    units: Units = "pixels",
    grid: int = 4,
    rule: Rule = "mean",
    **_: Any,
) -> Passes:
    counts = list(range(steps + (rule == "trapezoid"))) if units == "pixels" else _counts(grid * grid, steps, rule == "trapezoid")
    if update:  # each method's maps are its own, once the image has changed
        times = sum(count > 0 for count in counts)
        return sum(((method.passes or Passes(0)).times(times) for method in methods), Passes(len(counts) * len(methods)))
    return shared_passes(methods) + Passes(len(set(counts)) * len(methods))


def _columns(
    model: nn.Module, methods: Sequence[Method], batch: Batch, update: bool, rule: Rule, settings: dict[str, Any]
) -> dict[str, dict[str, Tensor]]:
    """Return ``score`` (B,) and ``curve`` (B, S) by method name; methods can share the first maps, but not those after an update."""
    _check_names(rule=(rule, RULES))
    settings = {**settings, "update": update, "endpoint": rule == "trapezoid", "image_ids": batch.image_ids, "seed": methods[0].seed}
    maps = {} if update else shared_maps(methods, batch.images, batch.targets, batch.image_ids)
    columns = {}
    for method in methods:
        explainer = method if update else maps[method.name]
        curve = incremental_deletion_curve(model, explainer, batch.images, batch.targets, **settings)
        columns[method.name] = {"score": area_under_curve(curve, rule=rule), "curve": curve}
    return columns


@register_protocol(
    "incremental_deletion",
    in_domain=False,
    higher_is_better=True,
    range=(0, 1),
    passes=_passes,
    source="Samek et al., TNNLS 2017; Hesse, Schaub-Meyer, Roth, NeurIPS 2024",
)
def ascending_deletion(
    model: nn.Module,
    methods: Sequence[Method],
    batch: Batch,
    prepared: dict[str, Tensor],
    *,
    steps: int = 32,
    baseline: str = "zeros",
    update: bool = False,
    units: Units = "pixels",
    grid: int = 4,
    rule: Rule = "mean",
) -> dict[str, dict[str, Tensor]]:
    """Score the mean probability in [0, 1] while the least attributed pixels are deleted first; higher is better.

    The arguments are those of :func:`incremental_deletion`. Columns ``score`` and ``curve`` (B, S).
    """
    settings = {"steps": steps, "baseline": baseline, "units": units, "grid": grid}
    return _columns(model, methods, batch, update, rule, settings)


@register_protocol(
    "incremental_deletion_descending",
    in_domain=False,
    higher_is_better=False,
    range=(0, 1),
    passes=_passes,
    source="Samek et al., TNNLS 2017; Petsiuk et al., BMVC 2018 (deletion)",
)
def descending_deletion(
    model: nn.Module,
    methods: Sequence[Method],
    batch: Batch,
    prepared: dict[str, Tensor],
    *,
    steps: int = 32,
    baseline: str = "zeros",
    update: bool = False,
    units: Units = "pixels",
    grid: int = 4,
    rule: Rule = "mean",
) -> dict[str, dict[str, Tensor]]:
    """Score the mean probability in [0, 1] while the most attributed pixels are deleted first; lower is better.

    RISE's deletion is this with ``rule="trapezoid"`` and ``steps=224``. Columns ``score`` and ``curve`` (B, S).
    """
    settings = {"steps": steps, "baseline": baseline, "units": units, "grid": grid, "order": "descending"}
    return _columns(model, methods, batch, update, rule, settings)


@register_protocol(
    "insertion",
    in_domain=False,
    higher_is_better=True,
    range=(0, 1),
    passes=_passes,
    source="Petsiuk et al., BMVC 2018 (insertion)",
)
def insertion(
    model: nn.Module,
    methods: Sequence[Method],
    batch: Batch,
    prepared: dict[str, Tensor],
    *,
    steps: int = 32,
    baseline: str = "blur",
    update: bool = False,
    units: Units = "pixels",
    grid: int = 4,
    rule: Rule = "mean",
) -> dict[str, dict[str, Tensor]]:
    """Score the mean probability in [0, 1] while the most attributed pixels are inserted first; higher is better.

    RISE's insertion also starts from a blurred image, but with a narrower blur (11 taps, sigma 5). Columns ``score`` and ``curve`` (B, S).
    """
    settings = {"steps": steps, "baseline": baseline, "units": units, "grid": grid, "order": "descending", "mode": "insertion"}
    return _columns(model, methods, batch, update, rule, settings)


class IncrementalDeletionScore(MeanOverImages):
    """Mean area; ``update(curves, image_ids=None)`` with (B, S). Higher is better for ascending deletion and descending insertion."""

    function = staticmethod(area_under_curve)
