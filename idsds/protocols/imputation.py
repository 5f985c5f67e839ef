"""ROAD: deletion of the most attributed pixels, each imputed as a noisy mean of its neighbours, so that the mask leaks no information.

A removed pixel becomes the weighted mean of its eight neighbours, including removed ones (direct neighbours weigh twice as much as
diagonal ones): one sparse linear system per image and fraction. A little noise hides the smoothness of the imputed region.

Source: Rong, Leemann, Borisov, Kasneci, Kasneci, "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022
(arXiv 2202.00449).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor, nn

from idsds.common.batching import default_batch, in_batches
from idsds.common.randomness import Draws
from idsds.methods.base import Method, Passes, shared_maps, shared_passes
from idsds.models.base import frozen
from idsds.protocols.base import Batch, Columns, Prepared, register_protocol

#: Fractions of the pixels that are removed.
SHARES = tuple(step / 10 for step in range(1, 10))


@lru_cache(maxsize=8)
def _neighbours(height: int, width: int) -> sparse.csr_array:
    """Return the weights of each pixel's neighbours inside the image, (n, n), with rows that sum to 1."""
    above_or_below, beside = (sparse.eye_array(side, k=1) + sparse.eye_array(side, k=-1) for side in (height, width))
    direct = sparse.kron(above_or_below, sparse.eye_array(width)) + sparse.kron(sparse.eye_array(height), beside)
    weights = sparse.csr_array(2 * direct + sparse.kron(above_or_below, beside))
    return sparse.csr_array(sparse.diags_array(1 / weights.sum(axis=1)) @ weights)


def impute(images: Tensor, removed: Tensor) -> Tensor:
    """Impute all removed pixels jointly by the weighted means of their neighbours.

    Args:
        images: (B, C, H, W), in any space.
        removed: (B, 1, H, W), True for removed pixels; each image must keep at least one.

    Returns:
        (B, C, H, W). Neighbours beyond the border do not count.

    Raises:
        ValueError: if all pixels of an image are removed.
    """
    if removed.flatten(1).all(dim=1).any():
        raise ValueError("every pixel of an image is removed: there is nothing left to impute from")
    weights = _neighbours(*images.shape[-2:])
    values = images.detach().flatten(2).to("cpu", torch.float64, copy=True).numpy()  # (B, C, n)
    for value, gone in zip(values, removed.flatten(1).cpu().numpy(), strict=True):
        if gone.any():
            of_gone = weights[gone]
            system = sparse.csc_array(sparse.eye_array(int(gone.sum())) - of_gone[:, gone])
            value[:, gone] = splu(system).solve(of_gone[:, ~gone] @ value[:, ~gone].T).T
    return torch.from_numpy(values).to(images).view_as(images)


def road_curve(
    model: nn.Module,
    maps: Tensor,
    images: Tensor,
    targets: Tensor,
    *,
    noise: float = 0.01,
    seed: int = 0,
    image_ids: Sequence[object] | None = None,
) -> Tensor:
    """Return the target's probability with the most attributed 10 %, 20 %, .. 90 % of the pixels imputed, (B, 9).

    Args:
        model: returns logits (B, K).
        images, targets: (B, 3, H, W), normalised, and (B,).
        maps: (B, 1, H, W); ties are broken in row-major order.
        noise: standard deviation of the noise added to imputed pixels, in normalised units.
        seed, image_ids: key the noise, which is the same for every map.

    Raises:
        ValueError: if ``noise`` is below 0.
    """
    if not noise >= 0:
        raise ValueError(f"noise must be at least 0, not {noise!r}")
    drawn = noise * Draws(seed, "road", images, image_ids).normal(1)[:, 0]
    place = maps.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).view_as(maps)
    pixels, curve = maps[0].numel(), []

    def probability(images: Tensor, targets: Tensor) -> Tensor:
        return model(images).softmax(dim=1).gather(1, targets[:, None])

    with torch.inference_mode(), frozen(model):
        for share in SHARES:
            removed = place < round(share * pixels)
            changed = torch.where(removed, impute(images, removed) + drawn, images)
            curve.append(in_batches(probability, changed, targets, size=default_batch(images)))
    return torch.cat(curve, dim=1).masked_fill(maps.flatten(1).isnan().any(dim=1, keepdim=True), torch.nan)


@register_protocol(
    higher_is_better=False,
    range=(0, 1),
    passes=lambda methods, **_: shared_passes(methods) + Passes(len(SHARES) * len(methods)),
    source="Rong et al., ICML 2022",
)
def road(model: nn.Module, methods: Sequence[Method], batch: Batch, prepared: Prepared, *, noise: float = 0.01) -> Columns:
    """Score the mean of :func:`road_curve`, in [0, 1]; lower is better. Columns ``score`` and ``curve`` (B, 9)."""
    columns = {}
    for name, maps in shared_maps(methods, batch.images, batch.targets, batch.image_ids).items():
        settings = {"noise": noise, "seed": methods[0].seed, "image_ids": batch.image_ids}
        curve = road_curve(model, maps, batch.images, batch.targets, **settings)
        columns[name] = {"score": curve.mean(dim=1), "curve": curve}
    return columns
