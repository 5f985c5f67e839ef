"""A second known truth: sprites, whose five parts can be removed exactly, on a trained net.

The net's logits for all 32 subsets of the parts give the exact Shapley value of each. The exact map spreads it evenly over the part's
visible pixels. Scores of these maps are reported beside the verdict, which depends on patches alone. Protocols that change images or nets
(tests, mosaics) or retrain are left out, because the truth is known only for the images as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from idsds.common.randomness import generator
from idsds.methods.base import Method, MethodEntry, Passes
from idsds.protocols.base import Batch
from idsds.protocols.parts import part_shapley, part_table, target_logits
from idsds.statistics.intervals import jackknife, wilson
from idsds.studies.metric_sanity.known_maps import first_images, orderings, properties, scored
from idsds.training.checkpoints import Stage, obtain, plan_training
from idsds.training.recipes import Deletion

if TYPE_CHECKING:
    from idsds.studies.metric_sanity.known_truth import Reading

MODEL = "mini_resnet8"
#: Maximum number of images.
IMAGES = 12
#: Left out: one pass for each of the 12,288 values of an image; needs maps of other images, which are unknown.
LEFT_OUT = ("quantus/NonSensitivity", "quantus/Sufficiency")
#: Epochs of in-domain fine-tuning: these nets have seen holes before, because parts were left out of their training images.
EPOCHS = 2


def asked(reading: Reading) -> bool:
    """Return whether a protocol is tested on known parts."""
    fits = reading.entry.level == "image" and reading.truth != "gradient" and reading.entry.asks in ("right", "simple")
    return fits and reading.protocol not in LEFT_OUT


def sprite_stage(reading: Reading) -> Stage:
    """Return the net, trained with parts left out and, for protocols that require it, then fine-tuned with patches deleted."""
    deletion = Deletion(share=reading.entry.masked_share) if reading.entry.in_domain else None
    return plan_training(MODEL, "sprites", deletion, device="cpu", changes={"epochs": EPOCHS} if deletion else None)


@cache
def sprite_batch(images: int) -> Batch:
    """Return the first images of the test split in its fixed order, and as companions those of the validation split."""
    net = plan_training(MODEL, "sprites", None, device="cpu")
    test = net.split("test")
    companions = first_images(net.split("val"), 64)[:2]
    return Batch(*first_images(test, images), test.normalisation, lambda: companions, parts=test.parts)


def exact_values(net: nn.Module, batch: Batch) -> Tensor:
    """Return the exact Shapley values of the parts for the target's logit, (B, P)."""
    return part_shapley(target_logits(part_table(net, batch)["part_logits"], batch.targets))


class PartMap(Method):
    """The exact ``values`` (B, P) of the parts of a batch, with noise of a level as for :class:`.known_maps.KnownMap`."""

    def __init__(self, net: nn.Module, batch: Batch, values: Tensor, level: float, seed: int) -> None:
        name = "noise" if level == torch.inf else f"exact + {level:g} noise" if level else "exact"
        maps = dict(zip(batch.image_ids, _drawn(batch, values, level, seed), strict=True))

        def function(_net: nn.Module, images: Tensor, targets: Tensor, *, image_ids: Sequence[str], level: float) -> Tensor:
            return torch.stack([maps[image_id] for image_id in image_ids]).to(images)

        entry = MethodEntry(name=name, function=function, family="control", passes=Passes(0), noise="known parts")
        super().__init__(name, net, seed=seed, entry=entry, level=level)


def _drawn(batch: Batch, values: Tensor, level: float, seed: int) -> Iterator[Tensor]:
    """Yield the map of each image, (1, H, W)."""
    share, count = 0.0 if level == torch.inf else (1 + level**2) ** -0.5, values.shape[1]
    for image_id, exact in zip(batch.image_ids, values.double(), strict=True):
        noise = torch.randn(count, generator=generator(seed, "known parts", image_id), dtype=torch.float64)
        mean, spread = exact.mean(), exact.std()
        noisy = mean + share * (exact - mean) + (1 - share**2) ** 0.5 * spread * noise
        regions = batch.parts.regions(image_id)[:count].double()  # (P, H, W)
        each = noisy / regions.sum(dim=(1, 2)).clamp(min=1)
        yield (each[:, None, None] * regions).sum(dim=0, keepdim=True)


def parts_judged(reading: Reading, images: int, levels: Sequence[float], seed: int) -> dict[str, Any]:
    """Score exact and noisy values of parts by a protocol, on at most :data:`IMAGES` images.

    Returns:
        ``parts_ordering`` and ``parts_first`` with their intervals in ``_low`` and ``_high``, and ``parts_images``; empty for protocols
        that are left out.
    """
    if not asked(reading):
        return {}
    count, better = min(images, IMAGES), reading.entry.higher_is_better
    net, batch = obtain(sprite_stage(reading), progress=False), sprite_batch(count)
    values = exact_values(net, batch)
    maps = [PartMap(net, batch, values, level, seed) for level in (*levels, torch.inf)]
    scores = scored(batch, reading.entry, net, maps, seed, reading.settings)
    found, order = properties(scores, better, levels), orderings(scores, better).numpy()
    if not np.isfinite(order).any():
        return {"parts_images": count}
    low, high = jackknife(lambda some: float(np.nanmean(some)), order)
    first = dict(zip(("parts_first_low", "parts_first_high"), wilson(round(found["exact_first"] * count), count), strict=True))
    row = {"parts_ordering": found["ordering"], "parts_ordering_low": low, "parts_ordering_high": high, "parts_first": found["exact_first"]}
    return {**row, **first, "parts_images": count}
