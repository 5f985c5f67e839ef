"""The table of logits behind the FunnyBirds protocols, and each protocol as a function of it.

The table holds the logits for every subset of the P parts, and the target's logit without each background object: 2^P forward passes per
image and one for each of its background objects, once for all methods. A map enters through the importance of a part: the signed sum over
its pixels, dilated 5 x 5. A part is *important* at a threshold t if its importance exceeds t times the sum of the map. The same table gives
the exact Shapley values of the parts.

Throughout, the S = 2^P subsets are numbered as in :mod:`idsds.datasets.parts`; the last is the whole creature.

Source: Hesse, Schaub-Meyer, Roth, "FunnyBirds", ICCV 2023 (arXiv 2308.06248).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import factorial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idsds.common.batching import default_batch, in_batches
from idsds.datasets.parts import Parts, members
from idsds.models.base import frozen
from idsds.protocols.base import Batch, normalisation_of
from idsds.protocols.single_deletion import rank_correlation

#: The paper's thresholds, of which one is chosen for all images.
THRESHOLDS = torch.linspace(0.01, 0.5, 80)
#: A change by less than this fraction of the logit counts as none.
RELEVANT = 0.05
DILATION = 5
#: An image whose pixels differ by more than this from what its parts draw, on average and normalised, is another image.
DIFFERS = 0.1


def part_table(model: nn.Module, batch: Batch, **_: Any) -> dict[str, Tensor]:
    """Compute the reference for every method, with 2^P forward passes per image and one per background object.

    Args:
        batch: images of a data set with :attr:`~idsds.protocols.base.Batch.parts`.

    Returns:
        ``part_logits`` (B, S, K), for each subset of the parts, and ``object_logits`` (B, O), the target's without each background
        object, padded with NaN.

    Raises:
        ValueError: if the images' parts are not known, or an image is not the one that its id's parts draw.
    """
    parts, normalisation = known_parts(batch), normalisation_of(model, batch)
    logits, objects = [], batch.images.new_full((len(batch.images), parts.objects), torch.nan)
    with torch.inference_mode(), frozen(model):
        for row, (image_id, target) in enumerate(zip(batch.image_ids, batch.targets.tolist(), strict=True)):
            count = parts.count(image_id)
            pictures = [parts.draw(image_id, subset) for subset in range(parts.whole + 1)]
            pictures += [parts.without_object(image_id, number) for number in range(count)]
            images = normalisation(torch.stack(pictures).to(batch.images))
            if images.shape[1:] != batch.images.shape[1:] or (images[parts.whole] - batch.images[row]).abs().mean() > DIFFERS:
                raise ValueError(f"the image of {image_id!r} is not what its parts draw: other ids, order or normalisation?")
            found = in_batches(model, images, size=default_batch(batch.images)).to(objects)  # (S + count, K)
            logits.append(found[: parts.whole + 1])
            objects[row, :count] = found[parts.whole + 1 :, target]
    return {"part_logits": torch.stack(logits), "object_logits": objects}


def known_parts(batch: Batch) -> Parts:
    """Return the parts of a batch. Raises ValueError if they are not known."""
    if batch.parts is None:
        raise ValueError("the parts of these images are not known: take the data set 'funnybirds' or 'sprites', or pass Batch(parts=...)")
    return batch.parts


def part_shapley(values: Tensor) -> Tensor:
    """Return the exact Shapley values of P parts from a value for each of the 2^P subsets, (..., S) -> (..., P), float64.

    For the target's logits, ``part_shapley(part_logits.gather(2, targets...))``, they sum to the logit of the whole creature minus that
    without parts.

    Raises:
        ValueError: if the number of subsets is not a power of two.
    """
    parts = values.shape[-1].bit_length() - 1
    if values.shape[-1] != 2**parts or not parts:
        raise ValueError(f"there must be a value for each of 2, 4, 8, ... subsets, not {values.shape[-1]}")
    has = members(parts).to(values.device)  # (S, P)
    size = has.sum(dim=1, keepdim=True)
    weight = torch.tensor([factorial(n) * factorial(parts - 1 - n) / factorial(parts) for n in range(parts)], dtype=torch.float64)
    weight = weight.to(values.device)
    return values.double() @ torch.where(has, weight[(size - 1).clamp(min=0)], -weight[size.clamp(max=parts - 1)])


def target_logits(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the logits of one class per image, (B, S, K) and (B,) -> (B, S)."""
    return logits.gather(2, classes[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]


def part_drops(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the drop in a class's logit when each part alone is removed, (B, P)."""
    values = target_logits(logits, classes)
    whole = values.shape[1] - 1
    return values[:, -1:] - values[:, [whole - 2**part for part in range(whole.bit_length())]]


def part_importance(maps: Tensor, regions: Tensor, owners: Sequence[int], count: int) -> Tensor:
    """Return the signed sums of maps of one image over the dilated regions of each part and object.

    Args:
        maps: (N, H, W).
        regions: bool (R, H, W), see :meth:`idsds.datasets.parts.Parts.regions`.
        owners: index of the part or object that each region belongs to, below ``count``; regions of one owner are added.
        count: number M of parts and objects.

    Returns:
        (N, M), in the maps' dtype.
    """
    seen = regions.flatten(1).any(dim=1).nonzero().flatten()
    dilated = F.max_pool2d(regions[seen].to(maps.dtype), DILATION, stride=1, padding=DILATION // 2).flatten(1)  # (r, H * W)
    sums = maps.flatten(1) @ dilated.T
    return maps.new_zeros(len(maps), count).index_add(1, torch.tensor(owners, device=maps.device)[seen], sums)


def important(importance: Tensor, totals: Tensor, thresholds: Tensor, visible: Tensor | None = None) -> Tensor:
    """Return which parts are important at each threshold, bool (B, T, M).

    Args:
        importance: (B, M).
        totals: signed sums of the maps, (B,).
        thresholds: (T,).
        visible: which parts have visible pixels, bool (B, M); others are never important. None for all.
    """
    found = importance[:, None] > thresholds.to(totals)[:, None] * totals[:, None, None]
    return found if visible is None else found & visible[:, None]


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return whether the net classifies the whole creature correctly, 0 or 1, (B,); NaN where a logit is NaN."""
    return _known((logits[:, -1].argmax(dim=1) == targets).double(), logits)


def top5(logits: Tensor, targets: Tensor) -> Tensor:
    """Return whether the whole creature's class is among the five largest logits, 0 or 1, (B,); NaN where a logit is NaN."""
    best = logits[:, -1].topk(min(5, logits.shape[-1])).indices
    return _known((best == targets[:, None]).any(dim=1).double(), logits)


def _known(answers: Tensor, logits: Tensor) -> Tensor:
    return answers.masked_fill(logits[:, -1].isnan().any(dim=1), torch.nan)


def background_independence(intact: Tensor, object_logits: Tensor) -> Tensor:
    """Return the fraction of background objects whose removal lowers the target's logit by less than 5 %, (B,).

    NaN without any, or if the target's logit is NaN.

    Args:
        intact: the target's logit for the whole image, (B,).
        object_logits: the target's logit without each object, (B, O), padded with NaN.
    """
    return (_without_relevance(intact, object_logits).double().sum(dim=1) + 0 * intact) / (~object_logits.isnan()).sum(dim=1)


def irrelevant(logits: Tensor, targets: Tensor, object_logits: Tensor) -> Tensor:
    """Return which parts, then which objects, can be removed without lowering the target's logit by 5 % or more, bool (B, P + O)."""
    intact, drops = target_logits(logits, targets)[:, -1], part_drops(logits, targets)
    return _without_relevance(intact, torch.cat([intact[:, None] - drops, object_logits], dim=1))


def _without_relevance(intact: Tensor, without: Tensor) -> Tensor:
    drops = intact[:, None] - without
    return (drops.abs() < RELEVANT * intact[:, None].abs()) | (drops < 0)


def controlled_data(logits: Tensor, targets: Tensor, chosen: Tensor, variants: Tensor) -> Tensor:
    """Controlled synthetic data check: return how much of a sufficient set of parts is important, (B, T).

    The best fraction over the minimal sets of parts that distinguish the class from all others; NaN if the image is misclassified or
    there is no such set.

    Args:
        logits: (B, S, K).
        targets: (B,).
        chosen: which of the P parts are important for the target, bool (B, T, P).
        variants: the variant of each part, by class, (K, P).
    """
    scores = torch.full(chosen.shape[:2], torch.nan, dtype=torch.float64, device=logits.device)
    for row in (accuracy(logits, targets) == 1).nonzero().flatten().tolist():
        sets = sufficient_sets(variants, int(targets[row])).to(logits.device)  # (N, P)
        if len(sets):
            scores[row] = (chosen[row].double() @ sets.double().T / sets.sum(dim=1)).amax(dim=1)
    return scores


def sufficient_sets(variants: Tensor, target: int) -> Tensor:
    """Return the minimal sets of parts whose variants in ``target`` occur in no other class, bool (N, P)."""
    sets = members(variants.shape[1])[1:].to(variants.device)  # (S - 1, P), without the empty set
    differs = (variants != variants[target])[torch.arange(len(variants)) != target]  # (K - 1, P)
    sets = sets[(sets[:, None] & differs).any(dim=2).all(dim=1)]
    contains = (sets[:, None] | ~sets).all(dim=2)  # (N, N): does the first contain the second? Each contains itself
    return sets[contains.sum(dim=1) == 1]


def subset_of(chosen: Tensor) -> Tensor:
    """Return the indices of subsets, bool (..., P) -> (...)."""
    return (chosen.long() << torch.arange(chosen.shape[-1], device=chosen.device)).sum(dim=-1)


def preservation(logits: Tensor, chosen: Tensor) -> Tensor:
    """Preservation check: return 1 where the important parts alone preserve the prediction, else 0, (B, T); NaN where a logit is.

    ``chosen``, bool (B, T, P), are the important parts for the class predicted from the whole creature.
    """
    predictions, undefined = logits.argmax(dim=2), logits.isnan().any(dim=2)
    subset = subset_of(chosen)
    kept = (predictions.gather(1, subset) == predictions[:, -1:]).double()
    return kept.masked_fill(undefined.gather(1, subset) | undefined[:, -1:], torch.nan)


def deletion(logits: Tensor, chosen: Tensor) -> Tensor:
    """Deletion check: return 1 where the prediction changes without the important parts, else 0, (B, T); see :func:`preservation`."""
    return 1 - preservation(logits, ~chosen)


def distraction(dispensable: Tensor, chosen: Tensor) -> Tensor:
    """Distractibility: return one minus the fraction of irrelevant parts and objects that are important, (B, T); NaN without any.

    ``dispensable``, (B, P + O), is the result of :func:`irrelevant`; ``chosen``, bool (B, T, P + O), is what is important for the target.
    """
    count = dispensable.sum(dim=1)[:, None]
    return 1 - (chosen & dispensable[:, None]).sum(dim=2) / torch.where(count > 0, count, torch.nan).double()


def deletion_correlation(logits: Tensor, targets: Tensor, importance: Tensor) -> Tensor:
    """Single deletion: return Spearman's correlation between part drops and importance (B, P), rescaled from [-1, 1] to [0, 1], (B,)."""
    return rank_correlation(importance, part_drops(logits, targets).to(importance)) / 2 + 0.5


def rivals(variants: Tensor, reference: bool = False) -> Tensor:
    """Return for each class the first two others that share two parts with it, but not the same ones; -1 without any, (K, 2).

    With ``reference`` a class without such a pair gets the last two that share two parts, as in the authors' code.
    """
    found = torch.full((len(variants), 2), -1)
    same = (variants[:, None] == variants).cpu()  # (K, K, P)
    for target, shared in enumerate(same):
        pairs = list(combinations((shared.sum(dim=1) == 2).nonzero().flatten().tolist(), 2))
        fitting = [pair for pair in pairs if not (shared[pair[0]] & shared[pair[1]]).any()]
        if fitting or (reference and pairs):
            found[target] = torch.tensor(fitting[0] if fitting else pairs[-1])
    return found


def rivals_differ(logits: Tensor, shared: Tensor, pairs: Tensor) -> Tensor:
    """Return whether the net behaves as :func:`sensitivity` assumes, bool (B,).

    Removing the parts shared with a rival must lower that rival's logit more than removing those shared with the other rival.

    Args:
        logits: (B, S, K).
        shared: which parts the target shares with each rival, bool (B, 2, P).
        pairs: the two rivals, (B, 2); -1 if there are none.
    """
    rows = torch.arange(len(logits), device=logits.device)[:, None, None]
    without = logits[rows, subset_of(~shared)[:, :, None], pairs.clamp(min=0)[:, None]]  # (B, whose parts are gone, whose logit)
    return (without[:, 0, 0] < without[:, 1, 0]) & (without[:, 1, 1] < without[:, 0, 1]) & (pairs >= 0).all(dim=1)


def sensitivity(importance: Tensor, shared: Tensor) -> Tensor:
    """Target sensitivity: return the mean of two binary checks, (B,).

    A check is 1 if the parts that the target shares with a rival are more important in that rival's map than in the other rival's.

    Args:
        importance: the parts' importance for each rival, (B, 2, P).
        shared: as in :func:`rivals_differ`.
    """
    sums = torch.einsum("brp,bqp->bqr", importance, shared.to(importance))  # (B, whose parts, whose map)
    right = torch.stack([sums[:, 0, 0] > sums[:, 0, 1], sums[:, 1, 1] > sums[:, 1, 0]], dim=1)
    return torch.where(sums.isnan().flatten(1).any(dim=1), torch.nan, right.double().mean(dim=1))


def completeness(csdc: Tensor, pc: Tensor, dc: Tensor, distractibility: Tensor) -> Tensor:
    """Return the mean of distractibility and the mean of the three checks; the threshold is chosen to maximise it."""
    return ((csdc + pc + dc) / 3 + distractibility) / 2
