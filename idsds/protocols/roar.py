"""ROAR and KAR: remove the pixels that a method calls important, or keep nothing but them, train anew from scratch, and see what is lost.

For each image the pixels are ranked by the method's map. ROAR replaces the most important share of them in every image of the training, the
validation and the test split, KAR the least important share; then a fresh net is trained on what is left. Because training and test images
are modified alike, a drop of the accuracy means that information has gone, not that the net meets images that it has never seen. A method
that finds the information makes the accuracy fall faster than random ranks do (ROAR), or keeps it up for longer (KAR).

The score is the area between the two curves. It belongs to a method on a data set, not to an image:
:func:`idsds.studies.roar.study.roar` does the
training. What is *replaced*, by its position alone, may tell the class as well (a digit whose strokes are painted grey is still a digit):
neither protocol can see that, and the accuracy then stays up although the pixels have gone. What can see it is a net that is retrained on
nothing but the places (:func:`mask_images`).

Source: Hooker, Erhan, Kindermans, Kim, "A Benchmark for Interpretability Methods in Deep Neural Networks", NeurIPS 2019 (arXiv 1806.10758).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from idsds.common.randomness import generator
from idsds.common.registry import UnknownNameError
from idsds.protocols.base import register_protocol

Kind = Literal["remove", "keep"]
KINDS = get_args(Kind)
#: What a retrained net may be shown: images with pixels replaced, or nothing but which pixels these are.
Shown = Literal["remove", "keep", "mask"]
MASK: Final = "mask"
SOURCE = "Hooker et al., NeurIPS 2019 (arXiv 1806.10758)"
CALL = "idsds.studies.roar.study.roar(RoarSettings(...)), or run notebooks/roar.ipynb"


def pixel_ranks(maps: Tensor, image_ids: Sequence[object], seed: int = 0) -> Tensor:
    """The place of each pixel in its image's order, 0 for the largest attribution.

    Equal values are ordered at random, keyed by (seed, image id), so that neither rows nor columns are preferred: a constant map orders its
    pixels as ``Random`` does. So does a map with a NaN or an infinity, which is no order at all; :func:`unordered` counts both.

    Args:
        maps: (B, 1, H, W), signed.
        image_ids: one id per image.
        seed: of the order of equal values.

    Returns:
        (B, 1, H, W) int64, a permutation of 0 .. H * W - 1 for each image.

    Raises:
        ValueError: for maps of another shape, or another number of ids.
    """
    if maps.ndim != 4 or maps.shape[1] != 1:
        raise ValueError(f"maps must be (B, 1, H, W), not {tuple(maps.shape)}")
    if len(image_ids) != len(maps):
        raise ValueError(f"{len(maps)} maps with {len(image_ids)} image ids: one id per map, please")
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
    """Which maps (B, 1, H, W) order nothing, two booleans (B,): those with a value that is not finite, and those of one value alone."""
    values = maps.detach().flatten(1)
    undefined = ~values.isfinite().all(dim=1)
    return undefined, ~undefined & (values == values[:, :1]).all(dim=1)


def replaced_pixels(share: float, pixels: int) -> int:
    """How many of ``pixels`` a share in [0, 1] is, rounded to the nearest, a half upwards.

    Raises:
        ValueError: for a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], not {share!r}")
    return int(share * pixels + 0.5)


def replacement_mask(ranks: Tensor, share: float, kind: Kind = "remove") -> Tensor:
    """Which pixels are replaced.

    Args:
        ranks: (B, 1, H, W), from :func:`pixel_ranks`.
        share: of the pixels that are replaced, in [0, 1]: 0 leaves the image as it is, 1 leaves nothing of it.
        kind: ``remove`` replaces the most important pixels (ROAR), ``keep`` the least important ones, so that the top ``1 - share`` stay
            (KAR).

    Returns:
        (B, 1, H, W), True where a pixel is replaced: the same number in every image.

    Raises:
        UnknownNameError: for an unknown kind.
        ValueError: for a share outside [0, 1].
    """
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    n = ranks.shape[-2] * ranks.shape[-1]
    k = replaced_pixels(share, n)
    return ranks < k if kind == "remove" else ranks >= n - k


def replace_pixels(images: Tensor, ranks: Tensor, share: float, kind: Kind, fill: Tensor) -> Tensor:
    """The images that a net is trained and tested on.

    Args:
        images: (B, C, H, W), in any space.
        ranks: (B, 1, H, W), from :func:`pixel_ranks`.
        share, kind: see :func:`replacement_mask`.
        fill: (C,), what replaces a pixel, in the space of the images; in the paper the mean of each channel over the training images.

    Returns:
        (B, C, H, W), a new tensor.
    """
    return torch.where(replacement_mask(ranks, share, kind), fill.to(images)[:, None, None], images)


def mask_images(ranks: Tensor, share: float, channels: int = 3) -> Tensor:
    """Images of nothing but which pixels ROAR replaces: white where it does, black elsewhere.

    What KAR replaces at a share is the complement of what ROAR replaces at 1 - share (but for one pixel, where a half is rounded), and
    tells a net just as much.

    Args:
        ranks: (B, 1, H, W), from :func:`pixel_ranks`.
        share: of the pixels that are replaced, the most important ones, in [0, 1].
        channels: C.

    Returns:
        (B, C, H, W), 1.0 or 0.0.
    """
    return replacement_mask(ranks, share).float().expand(-1, channels, -1, -1)


def mask_shares(shares: Sequence[float], kinds: Sequence[Kind]) -> list[float]:
    """The shares of :func:`mask_images` that show what is replaced at ``shares`` under ``kinds``, ascending.

    Args:
        shares: of the pixels that are replaced.
        kinds: of :data:`KINDS`; a share of ``keep`` asks for its complement.
    """
    wanted = [mask_share(share, kind) for kind in kinds for share in shares]
    return sorted(set(wanted))


def mask_share(share: float, kind: Kind) -> float:
    """The share at which :func:`mask_images` shows what ``kind`` replaces at ``share``, or its complement."""
    return share if kind == "remove" else round(1 - share, 12)


@register_protocol("roar", in_domain=False, higher_is_better=True, range=(-1, 1), source=SOURCE, level="data set", call=CALL)
def roar_score(accuracy: Tensor, control: Tensor, shares: Tensor) -> Tensor:
    """Accuracy that a method's removals cost beyond that of random ones, averaged over shares; in [-1, 1], higher is better.

    ``(integral of (control - accuracy) over the shares) / (last share - first share)``, by the trapezoidal rule.

    Args:
        accuracy: (..., S), after retraining, in [0, 1].
        control: (..., S), the same for random ranks.
        shares: (S,), of the pixels that were removed, ascending, at least two.

    Returns:
        (...), NaN where an accuracy is.

    Raises:
        ValueError: for shares that do not ascend or do not match.
    """
    if shares.ndim != 1 or len(shares) < 2 or (shares.diff() <= 0).any():
        raise ValueError(f"shares must ascend, at least two of them, not {shares.tolist()}")
    if accuracy.shape[-1] != len(shares) or control.shape[-1] != len(shares):
        raise ValueError(f"{len(shares)} shares for accuracies {tuple(accuracy.shape)} and {tuple(control.shape)}")
    return torch.trapezoid(control - accuracy, shares, dim=-1) / (shares[-1] - shares[0])


@register_protocol("kar", in_domain=False, higher_is_better=True, range=(-1, 1), source=SOURCE, level="data set", call=CALL)
def kar_score(accuracy: Tensor, control: Tensor, shares: Tensor) -> Tensor:
    """Accuracy that a method's kept pixels hold beyond random ones, averaged over shares; in [-1, 1], higher is better.

    As :func:`roar_score` with the sign turned round; ``shares`` are those of the pixels that were replaced.
    """
    return -roar_score(accuracy, control, shares)


SCORES = {"remove": roar_score, "keep": kar_score}
