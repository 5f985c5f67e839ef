"""Similarity of two maps: Spearman correlation, structural similarity and top-k intersection. Higher is more similar.

Sources: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (rank correlation and SSIM between maps); Wang et al., "Image
Quality Assessment: From Error Visibility to Structural Similarity", TIP 2004; Ghorbani, Abid, Zou, "Interpretation of Neural Networks Is
Fragile", AAAI 2019 (top-k intersection).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from idsds.common.registry import UnknownNameError
from idsds.methods.base import Method, shared_maps
from idsds.methods.maps import Channels
from idsds.protocols.single_deletion import rank_correlation

WINDOW = 11
#: SSIM's: a number for the whole experiment, numbers by method as in the second study, or None for the range of each pair of maps.
DataRange = float | Mapping[str, float] | None


def maps_to_compare(
    methods: Sequence[Method], images: Tensor, targets: Tensor, image_ids: Sequence[str], channels: Channels
) -> dict[str, Tensor]:
    """Return the maps of :func:`~idsds.methods.base.shared_maps`; versions such as ``IxG abs`` are always computed from the sum."""
    versions = [method for method in methods if method.transform]
    others = [method for method in methods if not method.transform]
    if channels == "summed" or not versions:
        return shared_maps(methods, images, targets, image_ids, channels)
    maps = shared_maps(others, images, targets, image_ids, channels) | shared_maps(versions, images, targets, image_ids)
    return {method.name: maps[method.name] for method in methods}


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Return the Spearman correlation (B,) over the pixels of maps (B, 1, H, W), in [-1, 1]; NaN for constant or non-finite maps."""
    _check(first, second)
    return rank_correlation(first.flatten(1), second.flatten(1))


def structural_similarity(first: Tensor, second: Tensor, data_range: float | None = None) -> Tensor:
    """Return the structural similarity (SSIM) with a Gaussian window of 11 x 11 pixels, sigma 1.5, averaged over all pixels.

    Computed by torchmetrics, which reflects maps at the border; scikit-image excludes a border of 5 pixels instead.

    Args:
        first, second: maps (B, C, H, W) of at least 11 x 11 pixels; averaged over channels (the second study has three).
        data_range: the value range that the constants (0.01, 0.03) refer to, for a whole experiment; None for the range of each pair of
            maps.

    Returns:
        (B,) in [-1, 1]; NaN for maps with a non-finite value, and for two equal constant maps if the range is taken from them.

    Raises:
        ValueError: for maps of different shapes or smaller than 11 pixels, or a range of 0 or less.
    """
    _check(first, second, channels=None)
    if min(first.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM has a window of {WINDOW} pixels; the maps have {first.shape[-2]} x {first.shape[-1]}")
    if data_range is not None and not data_range > 0:
        raise ValueError(f"data_range must be above 0, not {data_range!r}")
    both = torch.cat([first, second], dim=1).flatten(1).detach()  # (B, 2 * H * W)
    span = both.amax(dim=1) - both.amin(dim=1) if data_range is None else torch.full_like(both[:, 0], data_range)
    undefined = ~both.isfinite().all(dim=1) | (span == 0)
    # Dividing maps by their range is equivalent to passing that range; torchmetrics takes one range for all images.
    scale = span.masked_fill(undefined, 1).view(-1, 1, 1, 1)
    clean = [maps.detach().masked_fill(undefined.view(-1, 1, 1, 1), 0) / scale for maps in (first, second)]
    values = structural_similarity_index_measure(*clean, sigma=1.5, data_range=1.0, reduction="none")
    return values.view(-1).masked_fill(undefined, torch.nan)


def range_of(data_range: DataRange, method: str) -> float | None:
    """Return the data range of SSIM for a method. Raises UnknownNameError if ranges are given by method, without this one."""
    if isinstance(data_range, Mapping) and method not in data_range:
        raise UnknownNameError("method with a data_range", method, data_range)
    return data_range[method] if isinstance(data_range, Mapping) else data_range


def top_intersection(first: Tensor, second: Tensor, share: float = 0.05) -> Tensor:
    """Return the fraction of one map's top pixels that are also top pixels of the other.

    ``sum over pixels of m1 * m2 / k``, where m is 1 above the k-th largest value, and ties with it share the remaining places. A sparse
    map thus gains nothing from its zeros, and a constant map scores k / n, the chance level.

    Args:
        first, second: maps (B, 1, H, W).
        share: fraction of the pixels that count as top; k = max(1, round(share * H * W)).

    Returns:
        (B,) in [0, 1]; NaN for maps with a NaN.

    Raises:
        ValueError: for maps of different shapes, or if ``share`` is not in (0, 1].
    """
    _check(first, second)
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], not {share!r}")
    k = max(1, round(share * first[0].numel()))
    product = _membership(first.detach().flatten(1), k) * _membership(second.detach().flatten(1), k)
    undefined = first.isnan().flatten(1).any(dim=1) | second.isnan().flatten(1).any(dim=1)
    return (product.sum(dim=1) / k).masked_fill(undefined, torch.nan)


def _membership(values: Tensor, k: int) -> Tensor:
    """Return 1 above the k-th largest value, an equal part of the remaining places for ties with it, else 0; (B, n) -> (B, n)."""
    last = values.topk(k, dim=1).values[:, -1:]
    above, equal = values > last, values == last
    left = (k - above.sum(dim=1, keepdim=True)) / equal.sum(dim=1, keepdim=True)
    return above + equal * left


def _check(first: Tensor, second: Tensor, channels: int | None = 1) -> None:
    if first.shape != second.shape or first.ndim != 4 or first.shape[1] != (channels or first.shape[1]):
        raise ValueError(f"maps must have one shape (B, {channels or 'C'}, H, W), not {tuple(first.shape)} and {tuple(second.shape)}")
