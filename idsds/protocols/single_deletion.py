"""The in-domain single deletion score (IDSDS) and its out-of-domain counterpart, the single deletion score (SDS).

Each patch of a grid is deleted in turn; an image's score is the Spearman correlation between the drops of the target logit and the sums
of attribution over the patches. SDS takes any model. IDSDS takes one that was fine-tuned on images with a deleted patch, so that a drop
measures lost information rather than distribution shift.

Source: Hesse, Schaub-Meyer, Roth, "Benchmarking the Attribution Quality of Vision Models", NeurIPS 2024 (arXiv 2407.11910).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from idsds.common.batching import default_batch, halving, in_batches
from idsds.common.interventions import all_deletions, baseline_images, patch_size, shifted
from idsds.common.registry import check_name
from idsds.methods.base import Method, Passes, shared_maps
from idsds.methods.maps import check_batch
from idsds.models.base import frozen
from idsds.protocols.base import Batch, Columns, MeanOverImages, Prepared, register_protocol

Quantity = Literal["logit", "probability"]


def deletion_drops(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    grid: int = 4,
    baseline: str = "zeros",
    *,
    quantity: Quantity = "logit",
    offset: int = 0,
    seed: int = 0,
    image_ids: Sequence[object] | None = None,
    batch: int | None = None,
) -> Tensor:
    """Return the drop in the target's output when each patch alone is deleted.

    ``drop[b, p] = f(images[b])[targets[b]] - f(images[b] without patch p)[targets[b]]``

    Args:
        model: returns logits (B, K).
        images: float (B, 3, H, W), normalised for the model.
        targets: (B,) class indices; in the paper the labels.
        grid: patches per side; must divide H and W.
        baseline: replaces the patch: ``zeros`` (in normalised space), ``blur`` or ``uniform``.
        quantity: ``logit`` as in the paper, or ``probability`` (softmax).
        offset: pixels by which the grid is shifted right and down, less than a patch; ``grid - 1`` whole patches per side then remain.
        seed: seed of the ``uniform`` baseline.
        image_ids: one id per image, which keys the ``uniform`` baseline.
        batch: images per forward pass; None bounds it by memory.

    Returns:
        (B, n), row-major patches, n = grid * grid without an offset, signed: positive where deleting lowers the output. NaN where the
        model returns NaN.

    Raises:
        UnknownNameError: for an unknown baseline or quantity.
        ValueError: if the grid does not divide the image.
    """
    of = Batch(images, targets, image_ids)  # type: ignore[arg-type]
    return deletion_table(model, of, batch, grid=grid, baseline=baseline, quantity=quantity, offset=offset, seed=seed)["drops"]


def deletion_table(
    model: nn.Module,
    batch: Batch,
    size: int | None = None,
    *,
    grid: int = 4,
    baseline: str = "zeros",
    quantity: Quantity = "logit",
    offset: int = 0,
    seed: int = 0,
) -> Prepared:
    """Compute the reference for every method with 1 + n forward passes: ``intact`` (B,), ``prediction`` (B,), ``drops`` (B, n).

    ``size`` is the number of images per pass; None bounds it by memory. The rest is as for :func:`deletion_drops`.
    """
    images, targets, patches = batch.images, batch.targets, (grid, offset)
    check_batch(images, targets, batch.image_ids)
    replacement = baseline_images(images, baseline, seed=seed, image_ids=batch.image_ids)
    number = shifted(*images.shape[-2:], *patches)[1] ** 2
    check_name("quantity", quantity, ("logit", "probability"))

    def outputs(images: Tensor) -> Tensor:
        logits = model(images)
        return logits.softmax(dim=1) if quantity == "probability" else logits

    def deletions(images: Tensor, replacement: Tensor, targets: Tensor) -> Tensor:
        deleted = all_deletions(images, replacement, *patches).flatten(0, 1)  # (b * n, 3, H, W)
        repeated = targets.repeat_interleave(number)
        return outputs(deleted).gather(1, repeated[:, None]).view(len(images), number)

    def everything(size: int) -> tuple[Tensor, Tensor]:
        intact = in_batches(outputs, images, size=size)  # (B, K)
        if size >= number:
            return intact, in_batches(deletions, images, replacement, targets, size=size // number)
        # One image's deletions exceed the internal batch: split them too.
        columns = []
        for image, one, target in zip(images, replacement, targets, strict=True):
            deleted = all_deletions(image[None], one[None], *patches)[0]  # (n, 3, H, W)
            columns.append(in_batches(outputs, deleted, size=size)[:, target])
        return intact, torch.stack(columns)

    with torch.inference_mode(), frozen(model):
        (intact, deleted), _ = halving(everything, size or default_batch(images))  # (B, K), (B, n)
    target = intact.gather(1, targets[:, None])
    return {"intact": target[:, 0], "prediction": intact.argmax(dim=1), "drops": target - deleted}


def patch_sums(maps: Tensor, grid: int = 4, offset: int = 0) -> Tensor:
    """Sum attribution over each patch.

    Args:
        maps: (B, 1, H, W) or (B, H, W), signed.
        grid: patches per side; must divide H and W.
        offset: pixels by which the grid is shifted right and down, see :func:`deletion_drops`.

    Returns:
        (B, n), row-major patches, n = grid * grid without an offset, in the maps' dtype.
    """
    if maps.ndim == 4 and maps.shape[1] == 1:
        maps = maps[:, 0]
    if maps.ndim != 3:
        raise ValueError(f"maps must be (B, 1, H, W) or (B, H, W), not {tuple(maps.shape)}")
    (rows, columns), grid = shifted(*maps.shape[-2:], grid, offset)
    maps = maps[:, rows, columns]
    height, width = patch_size(*maps.shape[-2:], grid)
    cells = maps.reshape(len(maps), grid, height, grid, width)  # (B, row, H / grid, column, W / grid)
    return cells.sum(dim=(2, 4)).flatten(1)


def rank_correlation(sums: Tensor, drops: Tensor, *, infinite: Literal["nan", "rank"] = "nan") -> Tensor:
    """Return the Spearman correlation of each row, with average ranks for ties: Pearson's correlation of the ranks.

    Args:
        sums: (B, n).
        drops: (B, n).
        infinite: treatment of infinite values: ``nan`` makes the row undefined; ``rank`` ranks them as the largest or smallest, as
            scipy and the reference do.

    Returns:
        (B,) float64 in [-1, 1] (float32 on devices without float64), higher is better; NaN where the correlation is undefined: constant
        rows, rows with a non-finite value, or n < 2.

    Raises:
        ValueError: if the shapes differ or are not (B, n).
    """
    if sums.ndim != 2 or sums.shape != drops.shape:
        raise ValueError(f"sums and drops must have one shape (B, n), not {tuple(sums.shape)} and {tuple(drops.shape)}")
    check_name("treatment of infinite values", infinite, ("nan", "rank"))
    return correlated(centred_ranks(sums, infinite=infinite), centred_ranks(drops, infinite=infinite))


def centred_ranks(values: Tensor, *, infinite: Literal["nan", "rank"] = "nan") -> Tensor:
    """Return each row's average ranks minus their mean, (B, n); NaN for rows whose :func:`rank_correlation` is undefined."""
    values = values.detach()
    undefined = (values.isnan() if infinite == "rank" else ~values.isfinite()).any(dim=1, keepdim=True)
    ranks = average_ranks(values)
    return (ranks - ranks.mean(dim=1, keepdim=True)).masked_fill(undefined, torch.nan)


def correlated(first: Tensor, second: Tensor) -> Tensor:
    """Return the Spearman correlation (B,) from the results of :func:`centred_ranks`, (B, n) each."""
    norms = first.square().sum(dim=1).sqrt() * second.square().sum(dim=1).sqrt()
    return ((first * second).sum(dim=1) / norms).clamp(-1, 1)  # 0 / 0 = NaN for a constant row


#: Longer rows are ranked with one sort; for shorter ones, two searches are faster.
LONG = 64


def average_ranks(values: Tensor) -> Tensor:
    """Return ranks from 1 along the last dimension; tied values share their mean rank. (B, n) -> (B, n), exact in float64."""
    dtype = torch.float32 if values.device.type == "mps" else torch.float64
    if values.shape[1] <= LONG:
        ordered = values.sort(dim=1).values
        below = torch.searchsorted(ordered, values.contiguous())  # how many are smaller
        upto = torch.searchsorted(ordered, values.contiguous(), right=True)  # how many are smaller or equal
        return (below + upto + 1).to(dtype) / 2
    ordered, order = values.sort(dim=1)
    ranks = torch.arange(1, values.shape[1] + 1, dtype=dtype, device=values.device).expand_as(values)
    differs = ordered[:, 1:] != ordered[:, :-1]
    if not differs.all():
        edge = differs.new_ones(len(values), 1)
        first = torch.where(torch.cat([edge, differs], dim=1), ranks, 0).cummax(dim=1).values
        last = torch.where(torch.cat([differs, edge], dim=1), ranks, torch.inf).flip(1).cummin(dim=1).values.flip(1)
        ranks = (first + last) / 2
    return torch.empty_like(ranks, memory_format=torch.contiguous_format).scatter_(1, order, ranks)


_SHARED: dict[str, Any] = {
    "higher_is_better": True,
    "range": (-1, 1),
    "prepare": deletion_table,
    "prepare_passes": lambda *, grid=4, offset=0, **_: Passes(1 + (grid - (offset > 0)) ** 2),
    "source": "Hesse, Schaub-Meyer, Roth, NeurIPS 2024",
}


@register_protocol("single_deletion", **_SHARED)
@register_protocol("idsds", in_domain=True, **_SHARED)
def single_deletion(
    model: nn.Module, methods: Sequence[Method], batch: Batch, prepared: Prepared, *, grid: int = 4, offset: int = 0, **_: Any
) -> Columns:
    """Score the Spearman correlation between drops and patch sums, in [-1, 1]; higher is better, about 0 for a random map.

    ``idsds`` is the score on a model fine-tuned with deletions, ``single_deletion`` that on the model before fine-tuning.

    Returns:
        By method name ``score`` (B,) and ``patch_sums`` (B, n).
    """
    columns = {}
    for name, maps in shared_maps(methods, batch.images, batch.targets, batch.image_ids).items():
        sums = patch_sums(maps, grid, offset)
        columns[name] = {"score": rank_correlation(sums, prepared["drops"]), "patch_sums": sums}
    return columns


class SingleDeletionScore(MeanOverImages):
    """Mean single deletion score; ``update(sums, drops, image_ids=None)`` with (B, n) each. On an in-domain model it is IDSDS."""

    higher_is_better = True
    function = staticmethod(rank_correlation)
