"""Robustness to augmentation: does the map stay the same when the model's output does?

The image is rotated (and its map with it) or passed through a photo filter. An augmentation counts only if it changes the image and
changes the target's probability by less than 0.05: any map would pass a filter that does nothing, such as more colour in a grey image. If
none counts, the score is undefined and ``counted`` is 0: a model that every rotation disturbs cannot be tested.

The study's five filters are those of G'MIC, which ``filters="gmic"`` runs if the optional package is installed. The default filters need
only torchvision and differ: ``detail`` adds back a difference of Gaussians at one scale, ``mighty_detail`` at three,
``local_normalisation`` moves the luminance halfway to a common local mean and deviation, ``chroma_boost`` raises the saturation by half,
and ``sharpen`` is a 3 x 3 kernel. On two colour photos of 224 x 224 pixels, the pixel changes made by these filters and by G'MIC 3.6
correlate by 0.94 (sharpen), 0.75 (mighty_detail), 0.52 (local_normalisation), 0.40 (detail) and 0.02 (chroma_boost); mean changes are
0.03 to 0.09 here and 0.03 to 0.08 in G'MIC.

Source: the robustness experiment "Don't Augment Me" of the xai-correlation study, for the angles, the filters and the threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from idsds.common.batching import default_batch, in_batches
from idsds.common.normalisation import Normalisation
from idsds.common.registry import check_name
from idsds.methods.base import Method, Passes, shared_passes
from idsds.methods.maps import Channels
from idsds.models.base import frozen
from idsds.models.quantity import plain_logits
from idsds.protocols.base import Batch, Columns, Prepared, normalisation_of, register_protocol
from idsds.protocols.gmic_filters import GMIC_FILTERS, load_gmic
from idsds.protocols.similarity import DataRange, maps_to_compare, range_of, spearman, structural_similarity, top_intersection

# In normalised units. An image whose pixels all change by less counts as unchanged, since any deterministic map would be robust to that.
CHANGED = 1e-3
ANGLES = (-30.0, -15.0, 15.0, 30.0)
Augmentation = Callable[[Tensor], Tensor]
Group = Literal["rotations", "filters"]
Filters = Literal["torchvision", "gmic"]
MEASURES = ("ssim", "spearman", "top_intersection")
Similarity = Literal["ssim", "spearman", "top_intersection", "ssim_by_channel"]


def rotate(images: Tensor, angle: float) -> Tensor:
    """Rotate images or maps (B, C, H, W) counter-clockwise by degrees about the centre, bilinearly; the uncovered corners are zero."""
    return transforms.rotate(images, angle, interpolation=InterpolationMode.BILINEAR, fill=0.0)


def detail(images: Tensor) -> Tensor:
    """Add to images in [0, 1] the detail that a Gaussian blur of 1 pixel removes."""
    return (images + (images - _blur(images, 1.0))).clamp(0, 1)


def mighty_detail(images: Tensor) -> Tensor:
    """Add to images in [0, 1] 1.5 times the mean of the details that blurs of 1, 2 and 4 pixels remove."""
    lost = sum(images - _blur(images, sigma) for sigma in (1.0, 2.0, 4.0)) / 3
    return (images + 1.5 * lost).clamp(0, 1)


def local_normalisation(images: Tensor) -> Tensor:
    """Mix images in [0, 1] in equal parts with a version whose luminance has local mean 0.5 and deviation 0.2; hues are kept."""
    luminance = transforms.rgb_to_grayscale(images)
    mean = _blur(luminance, 4.0)
    deviation = (_blur(luminance.square(), 4.0) - mean.square()).clamp(min=0).sqrt()
    wanted = 0.5 + 0.2 * (luminance - mean) / (deviation + 0.05)
    return (images + 0.5 * (wanted - luminance)).clamp(0, 1)


FILTERS: dict[str, Augmentation] = {
    "detail": detail,
    "local_normalisation": local_normalisation,
    "chroma_boost": partial(transforms.adjust_saturation, saturation_factor=1.5),
    "mighty_detail": mighty_detail,
    "sharpen": partial(transforms.adjust_sharpness, sharpness_factor=3.0),
}


def _blur(images: Tensor, sigma: float) -> Tensor:
    # Reflection at the border needs a radius smaller than the image.
    radius = max(1, min(round(3 * sigma), min(images.shape[-2:]) - 1))
    return transforms.gaussian_blur(images, [2 * radius + 1] * 2, [sigma, sigma])


def augmentations(
    group: Group, normalisation: Normalisation, filters: Filters = "torchvision"
) -> dict[str, tuple[Augmentation, Augmentation]]:
    """Return, by name, what to apply to the normalised image and what to apply to its map.

    Raises:
        UnknownNameError: for an unknown group or source of filters.
        ImportError: for G'MIC's filters without the package ``gmic``.
    """
    check_name("group of augmentations", group, get_args(Group))
    check_name("source of filters", filters, get_args(Filters))
    if group == "rotations":
        turns = {f"{angle:+.0f} degrees": partial(rotate, angle=angle) for angle in ANGLES}
        return {name: (turn, turn) for name, turn in turns.items()}

    if filters == "gmic":
        load_gmic()  # if missing, fails before any work

    def filtered(images: Tensor, apply: Augmentation) -> Tensor:
        return normalisation(apply(normalisation.invert(images).clamp(0, 1)))

    chosen = GMIC_FILTERS if filters == "gmic" else FILTERS
    return {name: (partial(filtered, apply=apply), lambda maps: maps) for name, apply in chosen.items()}


def robustness(
    originals: Tensor,
    augmented: Mapping[str, Tensor],
    transform: Mapping[str, Augmentation],
    shifts: Tensor,
    *,
    threshold: float = 0.05,
    top_share: float = 0.05,
    data_range: float | None = None,
) -> dict[str, Tensor]:
    """Compare the maps of augmented images with the original's map under the same transform.

    Args:
        originals: maps of the images, (B, C, H, W); SSIM is the mean over channels, the others compare their sum.
        augmented: maps of the augmented images, by augmentation, (B, C, H, W) each.
        transform: the transform that each augmentation applies to a map.
        shifts: change of the target's probability under each augmentation, (B, A), in [0, 1]; NaN if the image stays unchanged.
        threshold: only augmentations with a smaller shift count.
        top_share: fraction of the pixels in the top-k intersection.
        data_range: range of SSIM: a number for the whole experiment, None for that of each pair of maps.

    Returns:
        ``ssim``, ``spearman`` and ``top_intersection`` (B,): the mean over the augmentations that count, NaN if none counts or one
        of their values is undefined; higher is better. ``counted`` (B,): how many count. ``ssim_each`` and so on, (B, A): all values, NaN
        for augmentations that do not count.

    Raises:
        ValueError: if ``threshold`` is not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], a change of probability, not {threshold!r}")
    counts = shifts < threshold  # (B, A)
    measures: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "ssim": partial(structural_similarity, data_range=data_range),
        "spearman": _of_sums(spearman),
        "top_intersection": _of_sums(partial(top_intersection, share=top_share)),
    }
    columns: dict[str, Tensor] = {"counted": counts.sum(dim=1)}
    for name, measure in measures.items():
        each = torch.stack([measure(transform[key](originals), maps) for key, maps in augmented.items()], dim=1)  # (B, A)
        summed = torch.where(counts, each, 0).sum(dim=1)
        columns[name] = summed / columns["counted"]  # 0 / 0 = NaN where none counts
        columns[f"{name}_each"] = each.masked_fill(~counts, torch.nan)
    return columns


def _of_sums(measure: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Apply a measure to maps summed over channels."""
    return lambda first, second: measure(first.sum(1, keepdim=True), second.sum(1, keepdim=True))


def probability_shifts(
    model: nn.Module, batch: Batch, *, kind: Group = "rotations", filters: Filters = "torchvision", seed: int = 0, **_: Any
) -> dict[str, Tensor]:
    """Compute how much each augmentation changes the target's probability: ``shifts`` (B, A), absolute, in [0, 1].

    NaN, which does not count, if the augmentation leaves the image unchanged (no pixel changes by more than 0.001), as more colour does
    for a grey image: that the map stays the same then says nothing about the method.
    """

    def probability(images: Tensor) -> Tensor:
        with plain_logits():
            found = in_batches(model, images, size=default_batch(images)).softmax(dim=1)
        return found.gather(1, batch.targets[:, None])

    chosen = augmentations(kind, normalisation_of(model, batch), filters)
    with torch.inference_mode(), frozen(model):
        intact = probability(batch.images)  # (B, 1)
        shifts = []
        for apply, _ in chosen.values():
            augmented = apply(batch.images)
            changed = (augmented - batch.images).abs().amax(dim=(1, 2, 3)) > CHANGED
            shifts.append((probability(augmented) - intact).abs().masked_fill(~changed[:, None], torch.nan))
        return {"shifts": torch.cat(shifts, dim=1)}


def _count(group: str) -> int:
    return len(FILTERS) if group == "filters" else len(ANGLES)


@register_protocol(
    higher_is_better=True,
    range=(-1, 1),
    prepare=probability_shifts,
    prepare_passes=lambda *, kind="rotations", **_: Passes(1 + _count(kind)),
    passes=lambda methods, *, kind="rotations", **_: shared_passes(methods).times(1 + _count(kind)),
    asks="stable",
    source="'Don't Augment Me', the robustness experiment of the xai-correlation study",
)
def augmentation_robustness(
    model: nn.Module,
    methods: Sequence[Method],
    batch: Batch,
    prepared: Prepared,
    *,
    kind: Group = "rotations",
    filters: Filters = "torchvision",
    similarity: Similarity = "ssim",
    threshold: float = 0.05,
    top_share: float = 0.05,
    data_range: DataRange = None,
) -> Columns:
    """Score the similarity of maps under rotations or photo filters, in [-1, 1]; higher is better.

    ``score`` is the requested ``similarity``; the columns have all three. SSIM favours sparse maps, the top-k intersection does not.
    An image for which no augmentation counts has the score NaN and ``counted`` 0.

    Args:
        kind: ``rotations`` or ``filters``.
        filters: the source of the photo filters: ``torchvision``, or ``gmic`` if that package is installed.
        similarity: ``ssim``, ``spearman``, ``top_intersection``, or ``ssim_by_channel``: as in the study, SSIM (then also in its column)
            is the mean over the channels that a method gives, not that of their sum.
        threshold, top_share, data_range: see :func:`robustness`; the range may also be given by method.
    """
    check_name("similarity", similarity, get_args(Similarity))
    chosen = augmentations(kind, normalisation_of(model, batch), filters)
    channels: Channels = "each" if similarity == "ssim_by_channel" else "summed"
    rest = batch.targets, batch.image_ids, channels
    originals = maps_to_compare(methods, batch.images, *rest)
    found = {key: maps_to_compare(methods, apply(batch.images), *rest) for key, (apply, _) in chosen.items()}
    columns = {}
    for method in methods:
        likeness = robustness(
            originals[method.name],
            {key: maps[method.name] for key, maps in found.items()},
            {key: turn for key, (_, turn) in chosen.items()},
            prepared["shifts"],
            threshold=threshold,
            top_share=top_share,
            data_range=range_of(data_range, method.name),
        )
        columns[method.name] = {"score": likeness[similarity.removesuffix("_by_channel")], **likeness}
    return columns
