"""F-Fidelity: the drop in probability when a few random patches of the explanation are deleted, on a net fine-tuned with as few deleted.

The explanation is the set of most attributed patches. A random subset of it is deleted, never more patches than in fine-tuning, whatever
the size of the explanation; the same number is deleted from the rest of the image. For a good map, the first deletion costs much
probability and the second little.

Source: Zheng, Shirani, Chen, Lin, Cheng, Guo, Luo, "F-Fidelity: A Robust Framework for Faithfulness Evaluation of Explainable AI",
ICLR 2025 (arXiv 2410.02970).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from idsds.common.batching import default_batch, in_batches
from idsds.common.interventions import baseline_images, patch_numbers
from idsds.common.numbers import as_whole
from idsds.common.randomness import generator
from idsds.methods.base import Method, Passes, shared_maps, shared_passes
from idsds.models.base import frozen
from idsds.protocols.base import Batch, Columns, Prepared, register_protocol
from idsds.protocols.single_deletion import patch_sums

#: Largest fraction of patches deleted, in fine-tuning and in scoring; the paper's beta.
MOST = 0.1
#: Sizes of the explanation, as fractions of the patches, and the fraction of it that is deleted, subject to :data:`MOST`.
SIZES, PART = (0.25, 0.5, 0.75), 0.5


def subsets(n: int, samples: int, seed: int, image_id: object) -> Tensor:
    """Return random ranks of attribution to delete, bool (sizes, 2, samples, n), True where a patch is deleted.

    For each size, index 0 selects among the most attributed patches, index 1 among the others. Both select the same number: half of the
    smaller part, at least 1 and at most a tenth of all patches, rounded up.
    """
    draw = generator(seed, "f-fidelity", image_id)
    found = torch.zeros(len(SIZES), 2, samples, n, dtype=torch.bool)
    for chosen, size in zip(found, SIZES, strict=True):
        top = round(size * n)
        count = max(1, min(int(PART * min(top, n - top)), -int(-MOST * n // 1)))
        for half, (start, stop) in zip(chosen, ((0, top), (top, n)), strict=True):
            for one in half:
                one[start + torch.randperm(stop - start, generator=draw)[:count]] = True
    return found


@register_protocol(
    in_domain=True,
    masked_share=MOST,
    higher_is_better=True,
    range=(-1, 1),
    passes=lambda methods, *, samples=4, **_: shared_passes(methods) + Passes(2 * len(SIZES) * samples * len(methods)),
    source="Zheng et al., ICLR 2025",
)
def f_fidelity(
    model: nn.Module,
    methods: Sequence[Method],
    batch: Batch,
    prepared: Prepared,
    *,
    samples: int = 4,
    grid: int = 4,
    baseline: str = "zeros",
) -> Columns:
    """Score the extra drop in probability from deleting patches of the explanation, in [-1, 1]; higher is better, 0 for a random map.

    ``score = mean over sizes and samples of p(x without some of the rest) - p(x without some of the explanation)``

    Columns ``score``, ``rest`` and ``explanation``, the mean probability after either deletion. The random ranks are keyed by the image
    and the same for every method; the score of a map with a NaN is NaN.

    Args:
        model: a net fine-tuned with up to a tenth of the patches deleted.
        samples: random sets for each size.
        grid: patches per side, at least 2.

    Raises:
        ValueError: if ``samples`` is below 1, or ``grid`` is below 2 or does not divide the image's sides.
    """
    as_whole("samples", samples)
    as_whole("grid", grid, least=2)
    images, targets, n = batch.images, batch.targets, grid**2
    replacement = baseline_images(images, baseline, seed=methods[0].seed, image_ids=batch.image_ids)
    places = torch.stack([subsets(n, samples, methods[0].seed, image_id) for image_id in batch.image_ids]).to(images.device)
    numbers, each = patch_numbers(images, grid), places[0].numel() // n

    def probability(pairs: Tensor, place: Tensor) -> Tensor:
        image = pairs // each
        gone = places.flatten(1, 3)[image, pairs % each].gather(1, place[image])  # (pairs, n), by patch
        changed = torch.where(gone[:, numbers][:, None], replacement[image], images[image])
        return model(changed).softmax(dim=1).gather(1, targets[image, None])

    columns = {}
    for name, maps in shared_maps(methods, images, targets, batch.image_ids).items():
        sums = patch_sums(maps, grid)
        place = sums.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        with torch.inference_mode(), frozen(model):
            pairs = torch.arange(len(images) * each, device=images.device)
            found = in_batches(lambda some, place=place: probability(some, place), pairs, size=default_batch(images))
        left = found.view(len(images), len(SIZES), 2, samples).mean(dim=(1, 3)).masked_fill(sums.isnan().any(dim=1)[:, None], torch.nan)
        columns[name] = {"score": left[:, 1] - left[:, 0], "explanation": left[:, 0], "rest": left[:, 1]}
    return columns
