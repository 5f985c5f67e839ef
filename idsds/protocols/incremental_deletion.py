"""Incremental deletion and insertion: the target's output while pixels or patches are deleted or inserted in the order of attribution.

``incremental_deletion`` deletes the least attributed first, as reported in the IDSDS paper; ``incremental_deletion_descending`` the most
attributed first (Samek et al., 2017); ``insertion`` starts from the baseline and restores the most attributed first (RISE);
``symmetric_relevance_gain`` is the difference of the first two. With ``update`` the map is recomputed after each step, on the modified
image. ``in_domain_incremental_deletion`` and ``in_domain_relevance_gain`` delete patches on a net that was fine-tuned with any number of
patches deleted, so that, as for IDSDS, deletions are in-distribution.

Sources: Samek et al., "Evaluating the Visualization of What a Deep Neural Network Has Learned", TNNLS 2017 (arXiv 1509.06321);
Petsiuk, Das, Saenko, "RISE", BMVC 2018 (arXiv 1806.07421); Blücher, Vielhaben, Strodthoff, "Decoupling Pixel Flipping and Occlusion
Strategy for Consistent XAI Benchmarks", TMLR 2024 (arXiv 2401.06654), for the gain; Hesse, Schaub-Meyer, Roth, NeurIPS 2024
(arXiv 2407.11910).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from idsds.common.batching import default_batch, halving, in_batches
from idsds.common.interventions import BASELINES, baseline_images, patch_size
from idsds.common.numbers import as_whole
from idsds.common.randomness import content_ids
from idsds.common.registry import check_name
from idsds.methods.base import Method, Passes, shared_maps, shared_passes
from idsds.methods.maps import as_map, check_batch
from idsds.models.base import frozen
from idsds.protocols.base import Batch, Columns, Prepared, register_protocol
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
    """Return the area under :func:`incremental_deletion_curve`, which documents the other arguments and ``settings``.

    Args:
        rule: ``mean`` of the curve's points, excluding the fully deleted image, as in the IDSDS paper; or ``trapezoid`` over the whole
            curve, including the last point, as in RISE.

    Returns:
        (B,), in [0, 1] for probabilities. Higher is better for ``ascending`` deletion and for ``descending`` insertion, lower is better
        otherwise. Not normalised by the output for the intact image. NaN where the curve has a NaN.
    """
    check_name("rule", rule, RULES)
    curves = incremental_deletion_curve(
        model, method, images, targets, steps, order, baseline, update, endpoint=rule == "trapezoid", **settings
    )
    return area_under_curve(curves, rule=rule)


def area_under_curve(curves: Tensor, *, rule: Rule = "mean") -> Tensor:
    """Return the area (B,) under curves (B, S) with evenly spaced points on [0, 1], as ``mean`` or by the ``trapezoid`` rule."""
    check_name("rule", rule, RULES)
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
    image_ids: Sequence[object] | None = None,
    **settings: Any,
) -> Tensor:
    """Return the target's output after each step.

    ``curve[b, k] = f(images[b] with its first floor(k * n / steps) units replaced)[targets[b]]``, k = 0 .. steps - 1, where the n units
    (pixels with all their channels, or patches) are sorted by attribution, with ties in row-major order.

    Args:
        model: returns logits (B, K).
        images, targets: float (B, 3, H, W), normalised for the model, and class indices (B,).
        method: an attribution method, a callable ``(images, targets) -> maps``, or the maps themselves, (B, 1, H, W).
        steps, order, baseline, update: see :class:`Schedule`.
        image_ids: one id per image, which keys random numbers.
        settings: the other fields of :class:`Schedule`.

    Returns:
        (B, steps), or (B, steps + 1) with ``endpoint``; NaN from the step at which a map has a NaN, everywhere without ``update``.

    Raises:
        UnknownNameError: for an unknown order, baseline, mode, unit or quantity.
        ValueError: if ``steps`` is below 1, the grid does not divide the image, or ``update`` is combined with maps.
    """
    schedule = Schedule(steps, order, baseline, update, **settings)
    check_batch(images, targets, image_ids)
    if update and isinstance(method, Tensor):
        raise ValueError("update=True explains the image after each step: pass the method, not its maps")
    if schedule.units == "patches":
        patch_size(*images.shape[-2:], schedule.grid)
    image_ids = content_ids(images) if image_ids is None else image_ids

    def explained(images: Tensor) -> Tensor:
        maps = _maps(method, images, targets, image_ids)
        return maps.flatten(1) if schedule.units == "pixels" else patch_sums(maps, schedule.grid)  # (B, n)

    def outputs(images: Tensor, targets: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = model(images)
            return (logits.softmax(dim=1) if schedule.quantity == "probability" else logits).gather(1, targets[:, None])[:, 0]

    def everything(size: int) -> Tensor:
        replacement = baseline_images(images, baseline, seed=schedule.seed, image_ids=image_ids)
        ends = (images, replacement) if schedule.mode == "deletion" else (replacement, images)
        curve = _updated_curve if update else _curve
        return curve(schedule, explained, outputs, images, ends, targets, size)

    with frozen(model):
        found, _ = halving(everything, schedule.batch or default_batch(images))
    return found


@dataclass(frozen=True)
class Schedule:
    """What is replaced, in which order, and which output is recorded.

    Args:
        steps: number of points of the curve.
        order: ``ascending``: the least attributed units first; ``descending``: the most attributed first.
        baseline: replaces a unit; computed from the original image: ``zeros`` (in normalised space), ``blur`` or ``uniform``.
        update: explain the image again after each step; units that were replaced stay replaced.
        mode: ``deletion`` starts from the image and replaces units by the baseline, ``insertion`` starts from the baseline.
        units: ``pixels``, or ``patches`` of a ``grid`` x ``grid`` grid in the order of their sums of attribution.
        grid: patches per side; must divide H and W.
        quantity: ``probability`` (softmax) as in both papers, or ``logit``.
        endpoint: add the last point, k = steps, at which all units are replaced.
    """

    steps: int = 32
    order: Order = "ascending"
    baseline: str = "zeros"
    update: bool = False
    mode: Mode = "deletion"
    units: Units = "pixels"
    grid: int = 4
    quantity: Quantity = "probability"
    endpoint: bool = False
    seed: int = 0
    batch: int | None = None

    def __post_init__(self) -> None:
        choices = {"order": ORDERS, "mode": MODES, "units": UNITS, "quantity": QUANTITIES, "baseline": BASELINES}
        for kind, allowed in choices.items():
            check_name(kind, getattr(self, kind), allowed)
        as_whole("steps", self.steps)

    def counts(self, pixels: int) -> list[int]:
        """Return how many units of an image of ``pixels`` are replaced at each point of the curve."""
        units = pixels if self.units == "pixels" else self.grid**2
        return [k * units // self.steps for k in range(self.steps + self.endpoint)]

    def places(self, importance: Tensor) -> Tensor:
        """Return each unit's rank in the order, (B, n) -> (B, n), with ties in order of index."""
        ordered = importance.argsort(dim=1, descending=self.order == "descending", stable=True)
        return ordered.argsort(dim=1)

    def as_mask(self, units: Tensor, images: Tensor) -> Tensor:
        """Return a mask of units (B, n) as a mask of pixels (B, 1, H, W)."""
        height, width = images.shape[-2:]
        if self.units == "pixels":
            return units.view(len(units), 1, height, width)
        mask = units.view(len(units), 1, self.grid, self.grid)
        return mask.repeat_interleave(height // self.grid, dim=2).repeat_interleave(width // self.grid, dim=3)


Explained = Callable[[Tensor], Tensor]
Outputs = Callable[[Tensor, Tensor], Tensor]
Ends = tuple[Tensor, Tensor]


def _curve(schedule: Schedule, explained: Explained, outputs: Outputs, images: Tensor, ends: Ends, targets: Tensor, size: int) -> Tensor:
    """Return the curve (B, S) of one map per image."""
    (start, end), importance = ends, explained(images)
    place = schedule.places(importance)
    # Few patches and many steps: each distinct image once.
    distinct, index = torch.tensor(schedule.counts(images[0, 0].numel()), device=images.device).unique(return_inverse=True)

    def points(pairs: Tensor) -> Tensor:
        image, count = pairs // len(distinct), distinct[pairs % len(distinct)]
        replaced = schedule.as_mask(place[image] < count[:, None], images)
        return outputs(torch.where(replaced, end[image], start[image]), targets[image])

    pairs = torch.arange(len(images) * len(distinct), device=images.device)
    curves = in_batches(points, pairs, size=size).view(len(images), -1)[:, index]  # (B, steps)
    return curves.masked_fill(importance.isnan().any(dim=1, keepdim=True), torch.nan)


def _updated_curve(
    schedule: Schedule, explained: Explained, outputs: Outputs, images: Tensor, ends: Ends, targets: Tensor, size: int
) -> Tensor:
    """Return the curve (B, S) in which each step sorts by the map of the previous step's image."""
    start, end = ends
    current, undefined, gone = start, torch.zeros(len(start), dtype=torch.bool, device=start.device), None
    curve = []
    for count in schedule.counts(images[0, 0].numel()):
        if count:  # the first point is the start itself
            importance = explained(current)  # (B, n)
            undefined = undefined | importance.isnan().any(dim=1)
            if gone is not None:
                importance = importance.masked_fill(gone, -torch.inf if schedule.order == "ascending" else torch.inf)
            gone = schedule.places(importance) < count
            current = torch.where(schedule.as_mask(gone, start), end, start)
        curve.append(in_batches(outputs, current, targets, size=size).masked_fill(undefined, torch.nan))
    return torch.stack(curve, dim=1)


def _maps(method: Explainer, images: Tensor, targets: Tensor, image_ids: Sequence[object]) -> Tensor:
    """Return the maps (B, 1, H, W) of any kind of explainer."""
    if isinstance(method, Tensor):
        return as_map("maps", method, images)
    if isinstance(method, Method):
        return method(images, targets, image_ids)
    return as_map(getattr(method, "__name__", type(method).__name__), method(images, targets), images)


def _passes(
    methods: Sequence[Method],
    *,
    steps: int = 32,
    update: bool = False,
    units: Units = "pixels",
    grid: int = 4,
    rule: Rule = "mean",
    gain: bool = False,
    **_: Any,
) -> Passes:
    counts = Schedule(steps, units=units, grid=grid, endpoint=rule == "trapezoid").counts(
        steps
    )  # of an image with as many pixels as steps, or more
    curves = len(methods) * (1 + gain)
    if update:  # once the image has changed, methods cannot share maps
        times = sum(count > 0 for count in counts) * (1 + gain)
        return sum(((method.passes or Passes(0)).times(times) for method in methods), Passes(len(counts) * curves))
    return shared_passes(methods) + Passes(len(set(counts)) * curves)


def _register(
    name: str,
    what: str,
    higher_is_better: bool,
    source: str,
    default_baseline: str = "zeros",
    gain: bool = False,
    in_domain: bool = False,
    **fixed: Any,
) -> None:
    in_patches: Units = "patches" if in_domain else "pixels"  # as many as in fine-tuning

    @register_protocol(
        name,
        higher_is_better=higher_is_better,
        range=(-1 if gain else 0, 1),
        in_domain=in_domain,
        masked_share=1.0 if in_domain else None,
        passes=partial(_passes, units=in_patches, gain=gain),
        source=source,
    )
    def protocol(
        model: nn.Module,
        methods: Sequence[Method],
        batch: Batch,
        prepared: Prepared,
        *,
        steps: int = 32,
        baseline: str = default_baseline,
        update: bool = False,
        units: Units = in_patches,
        grid: int = 4,
        rule: Rule = "mean",
    ) -> Columns:
        check_name("rule", rule, RULES)
        settings: dict[str, Any] = {"steps": steps, "baseline": baseline, "update": update, "units": units, "grid": grid, **fixed}
        settings |= {"endpoint": rule == "trapezoid", "image_ids": batch.image_ids, "seed": methods[0].seed}
        explainers: Mapping[str, Explainer] = {method.name: method for method in methods}
        if not update:  # methods share the maps of the intact images, but not those after an update
            explainers = shared_maps(methods, batch.images, batch.targets, batch.image_ids)
        columns = {}
        for method, explainer in explainers.items():
            curve = incremental_deletion_curve(model, explainer, batch.images, batch.targets, **settings)
            if gain:  # the difference between deletion in ascending and in descending order
                backwards = {**settings, "order": "descending"}
                curve = curve - incremental_deletion_curve(model, explainer, batch.images, batch.targets, **backwards)
            columns[method] = {"score": area_under_curve(curve, rule=rule), "curve": curve}
        return columns

    protocol.__doc__ = f"""Score {what}.

    The arguments are those of :func:`incremental_deletion`. Columns ``score`` and ``curve`` (B, S).
    """


_register(
    "incremental_deletion",
    "the mean probability in [0, 1] while the least attributed pixels are deleted first; higher is better",
    True,
    "Samek et al., TNNLS 2017; Hesse, Schaub-Meyer, Roth, NeurIPS 2024",
)
# RISE's deletion is this with rule="trapezoid" and steps=224.
_register(
    "incremental_deletion_descending",
    "the mean probability in [0, 1] while the most attributed pixels are deleted first; lower is better",
    False,
    "Samek et al., TNNLS 2017; Petsiuk et al., BMVC 2018 (deletion)",
    order="descending",
)
# RISE's insertion also starts from a blurred image, but with a narrower blur (11 taps, sigma 5).
_register(
    "insertion",
    "the mean probability in [0, 1] while the most attributed pixels are inserted first; higher is better",
    True,
    "Petsiuk et al., BMVC 2018 (insertion)",
    default_baseline="blur",
    order="descending",
    mode="insertion",
)
GAIN = "the mean probability lost by deleting {} most attributed rather than least attributed first, in [-1, 1]; higher is better, random 0"
_register("symmetric_relevance_gain", GAIN.format("pixels"), True, "Blücher et al., TMLR 2024", gain=True)
_register(
    "in_domain_incremental_deletion",
    "the mean probability in [0, 1] while the least attributed patches are deleted first, on a net fine-tuned with any number deleted",
    True,
    "Hesse, Schaub-Meyer, Roth, NeurIPS 2024 (their fine-tuning combined with their incremental deletion)",
    in_domain=True,
)
_register(
    "in_domain_relevance_gain",
    GAIN.format("patches, on a net fine-tuned with any number of them deleted,"),
    True,
    "Blücher et al., TMLR 2024, on a net fine-tuned in the manner of Hesse, Schaub-Meyer, Roth, NeurIPS 2024",
    gain=True,
    in_domain=True,
)
