"""ROAR and KAR: remove the pixels that a method calls important, or keep only them, retrain from scratch, and measure the accuracy.

Each image's pixels are ranked by the method's map. ROAR replaces a fraction of the most important ones in every training, validation and
test image, KAR of the least important ones; then a new net is trained on the result. Because training and test images are modified in the
same way, a lower accuracy means lost information, not unfamiliar images. If a method finds the information, accuracy falls faster than
for random ranks (ROAR), or stays high for longer (KAR).

The score is the area between the two curves. It belongs to a method on a data set, not to an image; the notebook ``roar`` does the
training. The *positions* of the replaced pixels may reveal the class (a digit whose strokes are painted grey is still a digit); then
accuracy stays high although the pixels are gone, which neither protocol detects. A net retrained on the positions alone does
(:func:`mask_images`).

Source: Hooker, Erhan, Kindermans, Kim, "A Benchmark for Interpretability Methods in Deep Neural Networks", NeurIPS 2019 (arXiv 1806.10758).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from idsds.common.randomness import generator
from idsds.common.registry import check_name
from idsds.protocols.base import register_protocol

Kind = Literal["remove", "keep"]
KINDS = get_args(Kind)
#: What a net is retrained on: images with pixels replaced, or only the positions of these pixels.
Shown = Literal["remove", "keep", "mask"]
MASK: Final = "mask"
SOURCE = "Hooker et al., NeurIPS 2019 (arXiv 1806.10758)"
CALL = "`python -m idsds run roar FILE`, or run notebooks/roar.ipynb"


def pixel_ranks(maps: Tensor, image_ids: Sequence[object], seed: int = 0) -> Tensor:
    """Rank the pixels of each image, 0 for the largest attribution.

    Ties are broken at random, keyed by (seed, image id), so that no rows or columns are preferred: a constant map is ordered like
    ``Random``, and so is a map with a non-finite value; :func:`unordered` detects both.

    Args:
        maps: (B, 1, H, W), signed.
        seed: seed of the tie-breaking.

    Returns:
        (B, 1, H, W) int64, a permutation of 0 .. H * W - 1 for each image.

    Raises:
        ValueError: for maps of another shape, or a different number of ids.
    """
    if maps.ndim != 4 or maps.shape[1] != 1:
        raise ValueError(f"maps must be (B, 1, H, W), not {tuple(maps.shape)}")
    if len(image_ids) != len(maps):
        raise ValueError(f"there must be one image id per map, not {len(image_ids)} for {len(maps)} maps")
    values = maps.detach().flatten(1)  # (B, n)
    values = values.masked_fill(~values.isfinite().all(dim=1, keepdim=True), 0)
    n = values.shape[1]
    drawn = [torch.randperm(n, generator=generator(seed, "order of equal pixels", image_id)) for image_id in image_ids]
    order = torch.stack(drawn).to(values.device) if drawn else values.long()
    shuffled = values.gather(1, order)
    pixels = order.gather(1, shuffled.argsort(dim=1, descending=True, stable=True))  # (B, n): the pixel at each place
    places = torch.arange(n, device=values.device).expand_as(pixels)
    return torch.empty_like(pixels).scatter_(1, pixels, places).view(maps.shape)


def unordered(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return which maps (B, 1, H, W) have no order, as two masks (B,): those with a non-finite value, and constant ones."""
    values = maps.detach().flatten(1)
    undefined = ~values.isfinite().all(dim=1)
    return undefined, ~undefined & (values == values[:, :1]).all(dim=1)


def replaced_pixels(share: float, pixels: int) -> int:
    """Return the number of pixels in a fraction ``share`` in [0, 1] of ``pixels``, rounded to the nearest, halves up.

    Raises:
        ValueError: for a fraction outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], not {share!r}")
    return int(share * pixels + 0.5)


def replacement_mask(ranks: Tensor, share: float, kind: Kind = "remove") -> Tensor:
    """Return which pixels are replaced.

    Args:
        ranks: (B, 1, H, W), from :func:`pixel_ranks`.
        share: fraction of the pixels to replace, in [0, 1].
        kind: ``remove`` replaces the most important pixels (ROAR), ``keep`` the least important ones, so that the top ``1 - share`` stay
            (KAR).

    Returns:
        (B, 1, H, W), True where a pixel is replaced: the same number in every image.

    Raises:
        UnknownNameError: for an unknown kind.
        ValueError: for a fraction outside [0, 1].
    """
    check_name("kind", kind, KINDS)
    n = ranks.shape[-2] * ranks.shape[-1]
    k = replaced_pixels(share, n)
    return ranks < k if kind == "remove" else ranks >= n - k


def replace_pixels(images: Tensor, ranks: Tensor, share: float, kind: Kind, fill: Tensor) -> Tensor:
    """Replace pixels in training or test images.

    Args:
        images: (B, C, H, W), in any space.
        ranks: (B, 1, H, W), from :func:`pixel_ranks`.
        share, kind: see :func:`replacement_mask`.
        fill: (C,), the value of a replaced pixel, in the space of the images; in the paper each channel's mean over the training images.

    Returns:
        (B, C, H, W), a new tensor.
    """
    return torch.where(replacement_mask(ranks, share, kind), fill.to(images)[:, None, None], images)


def mask_images(ranks: Tensor, share: float) -> Tensor:
    """Return images of the positions that ROAR replaces: white where it does, black elsewhere.

    The pixels that KAR replaces at a fraction are the complement of those that ROAR replaces at one minus it (up to one pixel, by
    rounding), and contain the same information.

    Args:
        ranks: (B, 1, H, W), from :func:`pixel_ranks`.
        share: fraction of the pixels, most important first, that are replaced, in [0, 1].

    Returns:
        (B, 3, H, W), 1.0 or 0.0.
    """
    return replacement_mask(ranks, share).float().expand(-1, 3, -1, -1)


def mask_shares(shares: Sequence[float], kinds: Sequence[Kind]) -> list[float]:
    """Return the :func:`mask_share` of all ``shares`` and ``kinds``, ascending."""
    return sorted({mask_share(share, kind) for kind in kinds for share in shares})


def mask_share(share: float, kind: Kind) -> float:
    """Return the fraction at which :func:`mask_images` shows the pixels that ``kind`` replaces at ``share``, or their complement."""
    return share if kind == "remove" else round(1 - share, 12)


@register_protocol("roar", higher_is_better=True, range=(-1, 1), source=SOURCE, level="data set", call=CALL)
def roar_score(accuracy: Tensor, control: Tensor, shares: Tensor) -> Tensor:
    """Score the accuracy lost by removing a method's pixels instead of random ones, mean over fractions, in [-1, 1]; higher is better.

    ``(integral of (control - accuracy) over the fractions) / (last fraction - first fraction)``, by the trapezoidal rule.

    Args:
        accuracy: (..., S), after retraining, in [0, 1].
        control: (..., S), the same for random ranks.
        shares: (S,), at least two fractions of removed pixels, ascending.

    Returns:
        (...), NaN where an accuracy is NaN.

    Raises:
        ValueError: if the fractions are not ascending or do not match.
    """
    if shares.ndim != 1 or len(shares) < 2 or (shares.diff() <= 0).any():
        raise ValueError(f"shares must be at least two and ascend, not {shares.tolist()}")
    if accuracy.shape[-1] != len(shares) or control.shape[-1] != len(shares):
        raise ValueError(f"{len(shares)} shares for accuracies {tuple(accuracy.shape)} and {tuple(control.shape)}")
    return torch.trapezoid(control - accuracy, shares, dim=-1) / (shares[-1] - shares[0])


@register_protocol("kar", higher_is_better=True, range=(-1, 1), source=SOURCE, level="data set", call=CALL)
def kar_score(accuracy: Tensor, control: Tensor, shares: Tensor) -> Tensor:
    """Score the accuracy gained by keeping a method's pixels instead of random ones, mean over fractions, in [-1, 1]; higher is better.

    It is :func:`roar_score` with the opposite sign; ``shares`` are those of the replaced pixels.
    """
    return -roar_score(accuracy, control, shares)


SCORES = {"remove": roar_score, "keep": kar_score}
