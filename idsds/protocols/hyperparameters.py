"""Hyperparameter sensitivity: how much a method's map depends on settings that its paper leaves to the user.

One hyperparameter is varied at a time, and an image's maps are compared over all pairs of values. The notebook
``hyperparameter_sensitivity`` also runs IDSDS with the same settings, for the effect on a score.

Source: Bansal, Agarwal, Nguyen, "SAM: The Sensitivity of Attribution Methods to Hyperparameters", CVPR 2020 (arXiv 2003.08754).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from idsds.common.registry import check_name
from idsds.methods.base import Method, Passes, shared_passes
from idsds.methods.cam import cam_layer
from idsds.methods.maps import Channels
from idsds.protocols.base import Batch, Columns, Prepared, register_protocol
from idsds.protocols.similarity import DataRange, maps_to_compare, range_of, spearman, structural_similarity

Values = Sequence[Any]
Sweep = Mapping[str, Values]
#: The values tried for each hyperparameter, whatever the method; ``layer`` depends on the model, see :func:`cam_layers`.
SWEEPS: dict[str, Values] = {
    "steps": (5, 10, 25, 50, 100),
    "baseline": ("zeros", "uniform", "uniform per image"),
    "samples": (4, 16, 64),
    "sigma": (0.1, 0.3, 1.0),
    "probability": (0.1, 0.3, 0.5),
}
MASKS = (250, 500, 1000)  # samples of the perturbation family


def cam_layers(model: nn.Module) -> list[str]:
    """Return the layers that a CAM of this model could read, from the input to the model's own CAM layer.

    For ``layer3`` these are ``layer1`` to ``layer3``; for a sequence of layers (VGG's ``features``), its pooling layers, the last of
    which outputs the sequence's result; otherwise that layer alone.

    Raises:
        ValueError: if the model has no CAM layer.
    """
    last = cam_layer(model)
    stem = last.rstrip("0123456789")
    names = [name for name, _ in model.named_modules()]
    stages = [name for name in names if stem != last and re.fullmatch(re.escape(stem) + r"\d+", name)]
    if len(stages) > 1:
        return stages[: stages.index(last) + 1]
    pools = [name for name, module in model.named_modules() if name.startswith(f"{last}.") and isinstance(module, nn.MaxPool2d)]
    return pools or [last]


def sweeps_of(method: Method) -> dict[str, Values]:
    """Return the hyperparameters of a method that are in :data:`SWEEPS`, with the values to try; empty if it has none."""
    if method.entry.family in ("control", "own"):
        return {}
    found = {name: SWEEPS[name] for name in method.options if name in SWEEPS}
    if method.entry.family == "perturbation" and "samples" in found:
        found["samples"] = MASKS
    if "layer" in method.options and method.entry.inapplicable(method.model) is None:
        found["layer"] = cam_layers(method.model)
    return found


def with_options(method: Method, **options: Any) -> Method:
    """Return the same method on the same net with other values for some options; its new name states them.

    Raises:
        UnknownNameError: for an option that the method does not have.
    """
    name = f"{method.name}, {', '.join(f'{option}={value}' for option, value in options.items())}"
    return method.changed(name=name, options=method.entry.settings(**{**method.options, **options}))


def spread(maps: Tensor, data_range: float | None = None) -> dict[str, Tensor]:
    """Measure how much the maps of one image differ between settings.

    Each map is first divided by its largest absolute value, so that its scale does not matter; signs and zeros are kept.

    Args:
        maps: (S, B, C, H, W): S settings of B images of at least 11 x 11 pixels. SSIM is the mean over channels, the others compare
            their sum.
        data_range: of SSIM, after that division; None for the range of each pair of maps.

    Returns:
        (B,) each: ``spearman`` and ``ssim``, means over all S (S - 1) / 2 pairs, in [-1, 1], 1 if the setting does not matter;
        ``deviation``, the standard deviation over settings (divided by S, not S - 1) at each pixel, averaged over pixels, in [0, 1], 0 if
        the setting does not matter. A single setting is compared with itself. NaN for an image with a constant map (correlation only) or
        a non-finite map (all three).

    Raises:
        ValueError: for any other shape, or S = 0.
    """
    if maps.ndim != 5 or not len(maps):
        raise ValueError(f"maps must be (S, B, C, H, W) with S of at least 1, not {tuple(maps.shape)}")

    def scaled_by_largest(maps: Tensor) -> Tensor:
        largest = maps.abs().amax(dim=(2, 3, 4), keepdim=True)
        return maps / largest.masked_fill(largest == 0, 1)

    each, scaled = scaled_by_largest(maps), scaled_by_largest(maps.sum(dim=2, keepdim=True))
    pairs = list(combinations(range(len(maps)), 2)) or [(0, 0)]
    return {
        "spearman": torch.stack([spearman(scaled[i], scaled[j]) for i, j in pairs]).mean(dim=0),
        "ssim": torch.stack([structural_similarity(each[i], each[j], data_range) for i, j in pairs]).mean(dim=0),
        "deviation": scaled.std(dim=0, correction=0).mean(dim=(1, 2, 3)),
    }


def settings_of(method: Method, sweep: Sweep | None = None) -> dict[str, list[Method]]:
    """Return, by hyperparameter, the method with each value; a method without hyperparameters appears once, unchanged, under ``""``.

    Args:
        sweep: the values to try, by hyperparameter; None: those of :data:`SWEEPS`.

    Raises:
        UnknownNameError: for an option that the method does not have.
        ValueError: if an option has fewer than two different values.
    """
    for option, values in (sweep or {}).items():
        check_name(f"option of method {method.name!r}", option, method.options)
        if isinstance(values, str) or len(set(map(repr, values))) < 2:
            raise ValueError(f"sweep[{option!r}] must list at least two different values, not {values!r}")
    tried = sweep or sweeps_of(method)
    return {name: [with_options(method, **{name: value}) for value in values] for name, values in tried.items()} or {"": [method]}


def _passes(methods: Sequence[Method], *, sweep: Sweep | None = None, **_: Any) -> Passes:
    return shared_passes([each for method in methods for tried in settings_of(method, sweep).values() for each in tried])


@register_protocol(
    in_domain=True,  # reported beside IDSDS at the same settings, measured on that net
    higher_is_better=True,
    range=(-1, 1),
    passes=_passes,
    asks="stable",
    source="Bansal, Agarwal, Nguyen, CVPR 2020",
)
def hyperparameter_sensitivity(
    model: nn.Module,
    methods: Sequence[Method],
    batch: Batch,
    prepared: Prepared,
    *,
    sweep: Sweep | None = None,
    grid: int = 4,
    baseline: str = "zeros",
    data_range: DataRange = None,
    channels: Channels = "summed",
) -> Columns:
    """Score the similarity of a method's maps over the values of its hyperparameters, in [-1, 1]; higher (less sensitive) is better.

    ``score`` is the mean Spearman correlation over all pairs of settings; ``ssim`` and ``deviation`` are those of :func:`spread`. Several
    hyperparameters are varied one at a time, starting from the method's own settings, and averaged. A method without hyperparameters
    scores 1. A map that does not depend on a setting is not necessarily faithful: compare with the controls.

    Args:
        sweep: the values to try by hyperparameter, such as ``{"steps": [5, 10, 50]}``; None: all hyperparameters of the method in
            :data:`SWEEPS`.
        grid, baseline: the deletions of the net's fine-tuning; they only select the net.
        data_range: of SSIM, for maps divided by their largest absolute value: one number, one by method, or None for each pair's range.
        channels: SSIM of the maps' sum over channels, or, with ``each``, of each channel, averaged.

    Raises:
        UnknownNameError, ValueError: see :func:`settings_of`.
    """
    tried = {method.name: settings_of(method, sweep) for method in methods}
    flat = {each.name: each for sweeps in tried.values() for settings in sweeps.values() for each in settings}
    maps = maps_to_compare(list(flat.values()), batch.images, batch.targets, batch.image_ids, channels)
    columns = {}
    for name, sweeps in tried.items():
        span = range_of(data_range, name)
        each = [spread(torch.stack([maps[setting.name] for setting in settings]), span) for settings in sweeps.values()]
        means = {key: torch.stack([found[key] for found in each]).mean(dim=0) for key in each[0]}
        columns[name] = {"score": means["spearman"], **means}
    return columns
