"""Sensitivity-n and faithfulness correlation: does the attribution of random pixel sets predict the effect of their removal on the logit?

Both are Pearson correlations, over random sets of pixels, between the sum of the map over a set and the drop in the target's logit when
the set is replaced by a baseline. Faithfulness correlation uses sets of one size; sensitivity-n averages over several sizes.

Sources: Ancona, Ceolini, Öztireli, Gross, "Towards Better Understanding of Gradient-based Attribution Methods for Deep Neural Networks",
ICLR 2018 (arXiv 1711.06104); Bhatt, Weller, Moura, "Evaluating and Aggregating Feature-based Model Explanations", IJCAI 2020
(arXiv 2005.00631).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from idsds.common.batching import default_batch, in_batches
from idsds.common.interventions import baseline_images
from idsds.common.numbers import as_whole
from idsds.common.randomness import Draws
from idsds.methods.base import Method, Passes, shared_maps
from idsds.models.base import frozen
from idsds.protocols.base import Batch, Columns, Prepared, register_protocol

#: Set sizes of sensitivity-n, as fractions of the pixels.
SIZES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


def random_sets(images: Tensor, shares: Sequence[float], samples: int, *, seed: int, image_ids: Sequence[object] | None) -> Tensor:
    """Return random sets of pixels, (B, len(shares) * samples, H * W), True inside: ``samples`` of each size, keyed by image.

    Raises:
        ValueError: if ``samples`` is below 2, the minimum for a correlation, or a fraction is not in (0, 1).
    """
    as_whole("samples", samples, least=2)
    for share in shares:
        if not 0 < share < 1:
            raise ValueError(f"share must be in (0, 1), not {share!r}")
    sets = []
    drawn = Draws(seed, "sets of pixels", images, image_ids).uniform(len(shares) * samples)[:, :, 0].flatten(2)  # (B, S, n)
    for number, share in enumerate(shares):
        some = drawn[:, number * samples : (number + 1) * samples]
        size = max(1, round(share * some.shape[2]))
        sets.append(torch.zeros_like(some, dtype=torch.bool).scatter_(2, some.topk(size, dim=2).indices, True))
    return torch.cat(sets, dim=1)


def _prepared(model: nn.Module, batch: Batch, shares: Sequence[float], samples: int, baseline: str, seed: int) -> Prepared:
    """Compute the ``drops`` in the target's logit when each random set of pixels is replaced, (B, S)."""
    images, targets, ids = batch.images, batch.targets, batch.image_ids
    sets = random_sets(images, shares, samples, seed=seed, image_ids=ids)  # (B, S, H * W)
    replacement = baseline_images(images, baseline, seed=seed, image_ids=ids)
    size, count = default_batch(images), sets.shape[1]

    def logit(images: Tensor, targets: Tensor) -> Tensor:
        return model(images).gather(1, targets[:, None])

    def without(pairs: Tensor) -> Tensor:
        image, number = pairs // count, pairs % count
        mask = sets[image, number].view(-1, 1, *images.shape[-2:])
        return logit(torch.where(mask, replacement[image], images[image]), targets[image])

    with torch.inference_mode(), frozen(model):
        pairs = torch.arange(len(images) * count, device=images.device)
        left = in_batches(without, pairs, size=size).view(len(images), count)
        return {"drops": in_batches(logit, images, targets, size=size) - left}


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Return Pearson's correlation over the last dimension, float64 in [-1, 1]; NaN for constant or non-finite input."""
    first, second = first.double(), second.double()
    undefined = [~(each.isfinite().all(dim=-1)) | (each == each[..., :1]).all(dim=-1) for each in (first, second)]
    first, second = first - first.mean(dim=-1, keepdim=True), second - second.mean(dim=-1, keepdim=True)
    found = (first * second).sum(dim=-1) / (first.norm(dim=-1) * second.norm(dim=-1))
    return found.clamp(-1, 1).masked_fill(undefined[0] | undefined[1], torch.nan)


def _columns(methods: Sequence[Method], batch: Batch, shares: Sequence[float], samples: int, drops: Tensor) -> Columns:
    sets = random_sets(batch.images, shares, samples, seed=methods[0].seed, image_ids=batch.image_ids)
    columns = {}
    for name, maps in shared_maps(methods, batch.images, batch.targets, batch.image_ids).items():
        sums = (sets.double() @ maps.flatten(1).double()[:, :, None])[:, :, 0]  # (B, S)
        by_size = pearson(*(values.unflatten(1, (len(shares), -1)) for values in (sums, drops)))
        columns[name] = {"score": by_size.mean(dim=1), "by_size": by_size}
    return columns


def drops_of_sizes(
    model: nn.Module, batch: Batch, *, samples: int = 16, baseline: str = "zeros", seed: int = 0, **_: Any
) -> dict[str, Tensor]:
    """Compute the ``drops`` of ``samples`` random sets of each of :data:`SIZES`, (B, 6 * samples)."""
    return _prepared(model, batch, SIZES, samples, baseline, seed)


@register_protocol(
    higher_is_better=True,
    range=(-1, 1),
    prepare=drops_of_sizes,
    prepare_passes=lambda *, samples=16, **_: Passes(1 + samples * len(SIZES)),
    source="Ancona et al., ICLR 2018",
)
def sensitivity_n(
    model: nn.Module, methods: Sequence[Method], batch: Batch, prepared: Prepared, *, samples: int = 16, baseline: str = "zeros"
) -> Columns:
    """Score the correlation of attribution and logit drop over random pixel sets, in [-1, 1]; higher is better, random maps about 0.

    ``score`` is the mean of ``by_size`` (B, 6) over the fractions of pixels in :data:`SIZES`; NaN where one of them is undefined.
    """
    return _columns(methods, batch, SIZES, samples, prepared["drops"])


def drops_of_sets(
    model: nn.Module, batch: Batch, *, samples: int = 100, share: float = 0.1, baseline: str = "zeros", seed: int = 0, **_: Any
) -> dict[str, Tensor]:
    """Compute the ``drops`` of ``samples`` random sets of a ``share`` of the pixels, (B, samples)."""
    return _prepared(model, batch, [share], samples, baseline, seed)


@register_protocol(
    higher_is_better=True,
    range=(-1, 1),
    prepare=drops_of_sets,
    prepare_passes=lambda *, samples=100, **_: Passes(1 + samples),
    source="Bhatt, Weller, Moura, IJCAI 2020",
)
def faithfulness_correlation(
    model: nn.Module,
    methods: Sequence[Method],
    batch: Batch,
    prepared: Prepared,
    *,
    samples: int = 100,
    share: float = 0.1,
    baseline: str = "zeros",
) -> Columns:
    """Score the correlation of attribution and logit drop over random sets of one size, in [-1, 1]; higher is better, random 0."""
    return _columns(methods, batch, [share], samples, prepared["drops"])
