"""Known ground truth: the exact maps of a model whose importances are a formula, the same with noise, and how a protocol scores them.

Source: the question is that of the xai-correlation study; known ground truth in the spirit of FunnyBirds (Hesse, Schaub-Meyer, Roth, ICCV
2023, arXiv 2308.06248).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from scipy import stats
from torch import Tensor, nn

from idsds.common.randomness import Draws
from idsds.common.registry import check_name
from idsds.datasets import ImageDataset, create_dataset, fixed_order
from idsds.datasets.synthetic import PIXELS, PatchModel
from idsds.methods.base import Method, MethodEntry, Passes
from idsds.methods.gradient import gradients
from idsds.protocols.base import Batch, ProtocolEntry
from idsds.protocols.single_deletion import rank_correlation
from idsds.training.loop import batches

Known = Literal["deletion", "shapley", "gradient"]
LEVELS = (0.0, 0.25, 0.5, 1.0, 2.0)


def known_models() -> dict[str, PatchModel]:
    """Return models that label every synthetic image correctly, and differ only in what should not matter for judging a map.

    In float64, so that the drop of a patch without evidence is 0 and not a rounding error that takes a rank.
    """
    return {
        "saturating, with interactions": PatchModel(interaction=1.0, saturation=2.0).double(),
        "half its gain": PatchModel(interaction=1.0, saturation=2.0, gain=2.0).double(),
        "additive": PatchModel().double(),
    }


def interfering_model() -> PatchModel:
    """Return a model whose neighbouring patches weaken each other, so that drops and Shapley values order them differently."""
    return PatchModel(interaction=-2.0).double()


def _known(model: PatchModel, images: Tensor, targets: Tensor, *, level: float, importance: Known, scale: float, draws: Draws) -> Tensor:
    if importance == "gradient":
        exact, side = gradients(model, images, targets, len(images)).sum(dim=1, keepdim=True), 1
    else:
        exact, side = model.exact_maps(images, targets, importance)[..., ::PIXELS, ::PIXELS], PIXELS  # (B, 1, rows, columns)
    noise = draws.normal(1)[:, 0, :1, ::side, ::side]
    mean, spread = (found.view(-1, 1, 1, 1) for found in (exact.flatten(1).mean(dim=1), exact.flatten(1).std(dim=1)))
    # Signal and noise by share, so that maps of all levels have one scale: a metric that depends on the scale cannot infer the level
    # from it.
    share = 0.0 if level == torch.inf else (1 + level**2) ** -0.5
    cells = mean + share * (exact - mean) + (1 - share**2) ** 0.5 * spread * noise
    return scale * cells.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)


class KnownMap(Method):
    """The exact importances of a :class:`~idsds.datasets.synthetic.PatchModel`, with noise.

    Args:
        model: the model in closed form.
        level: standard deviation of the noise over that of the exact importances in the map; infinite: noise alone. The map has the
            mean and, in expectation, the spread of the exact one at every level; it correlates with it to ``1 / sqrt(1 + level^2)``.
        seed: of the noise, which is the same for all levels of one image and keyed by its id.
        importance: what is exact: per patch the drop when it alone is deleted (``deletion``) or its Shapley value (``shapley``), with noise
            per patch; or per pixel the ``gradient``, with noise per pixel.
        scale: what the whole map is multiplied by.
    """

    def __init__(self, model: PatchModel, level: float = 0.0, seed: int = 0, importance: Known = "deletion", scale: float = 1.0) -> None:
        if not isinstance(model, PatchModel):
            raise TypeError(f"exact importances are known for a PatchModel, not for a {type(model).__name__}")
        if not level >= 0:
            raise ValueError(f"level must be at least 0, not {level!r}")
        check_name("importance", importance, get_args(Known))
        name = "noise" if level == torch.inf else f"exact + {level:g} noise" if level else "exact"
        name = name if scale == 1 else f"{name} x{scale:g}"
        entry = MethodEntry(name=name, function=_known, family="control", passes=Passes(0), noise="known map")
        super().__init__(name, model, seed=seed, entry=entry, level=level, importance=importance, scale=scale)


def noisy_maps(model: PatchModel, levels: Sequence[float] = LEVELS, seed: int = 0, importance: Known = "deletion") -> list[Method]:
    """Return the exact map, the same with noise of each level, and noise alone: the maps whose scores :func:`properties` takes."""
    return [KnownMap(model, level, seed, importance) for level in (*levels, torch.inf)]


def properties(scores: Tensor, higher_is_better: bool, levels: Sequence[float] = LEVELS) -> dict[str, float]:
    """Describe a protocol's scores of maps that get worse from left to right.

    Args:
        scores: (B, L + 1): the map with noise of each level, 0 first, then noise alone; of each image, or of each repetition of a protocol
            that scores a whole data set.
        levels: the L levels, rising from 0.

    Returns:
        ``exact_first``: fraction of images whose exact map beats all others; ``random_last``: that for which noise alone loses to all;
        ``ordering``: mean Spearman correlation between less noise and a better score, over images where it is defined; ``resolution``: the
        lowest level whose scores are worse than the exact map's by a 95 % interval over images (Student's t, paired) that excludes 0,
        infinite if only noise alone is, NaN if not even that; ``beaten``: how many of the L noisy maps are better than the exact one by
        such an interval; ``separation``: mean of exact minus noise alone, divided by its standard deviation over images (how well a
        single image separates them); ``undefined``: fraction of scores that are NaN.

    Raises:
        ValueError: if scores do not match the levels, or levels do not rise from 0.
    """
    levels = list(levels)
    if not levels or levels[0] != 0 or sorted(set(levels)) != levels:
        raise ValueError(f"levels must rise from 0, not {levels}")
    if scores.ndim != 2 or scores.shape[1] != len(levels) + 1:
        raise ValueError(f"scores must be (B, {len(levels) + 1}) for {len(levels)} levels and noise alone, not {tuple(scores.shape)}")
    goodness = scores.double() if higher_is_better else -scores.double()
    loss = goodness[:, :1] - goodness[:, 1:]  # (B, L): positive where the exact map is better
    present = (~loss.isnan()).sum(dim=0)
    mean = loss.nanmean(dim=0)
    deviation = ((loss - mean).square().nansum(dim=0) / (present - 1)).sqrt()
    error = torch.from_numpy(stats.t.ppf(0.975, present.double().numpy() - 1)) * deviation / present.sqrt()
    told_apart = mean > error
    resolved = [level for level, told in zip([*levels[1:], torch.inf], told_apart.tolist(), strict=True) if told]
    return {
        "exact_first": float((loss > 0).all(dim=1).double().mean()),
        "random_last": float((goodness[:, :-1] > goodness[:, -1:]).all(dim=1).double().mean()),
        "ordering": float(orderings(scores, higher_is_better).nanmean()),
        "resolution": resolved[0] if resolved else torch.nan,
        "beaten": int((mean < -error).sum()),
        "separation": float(mean[-1] / deviation[-1]),
        "undefined": float(scores.isnan().double().mean()),
    }


def orderings(scores: Tensor, higher_is_better: bool) -> Tensor:
    """Return each image's Spearman correlation between less noise and a better score, (B,), from scores as in :func:`properties`."""
    goodness = scores.double() if higher_is_better else -scores.double()
    return rank_correlation(goodness, -torch.arange(goodness.shape[1], dtype=torch.float64).expand_as(goodness))


def model_shift(scores: Sequence[Tensor]) -> float:
    """Return how much a map's score changes from model to model, in units of the distance between the exact map and noise.

    ``mean over maps (max - min over models of the mean score) / mean over models |mean score of exact - of noise alone|``

    Args:
        scores: per model (B, L + 1): as for :func:`properties`. Means over images leave undefined scores out.

    Returns:
        0 if a score means the same on every model, about 1 if changing the model has as much effect as replacing the exact map by noise;
        NaN for fewer than two models, or where no score is defined.
    """
    if len(scores) < 2:
        return torch.nan
    means = torch.stack([each.double().nanmean(dim=0) for each in scores])  # (models, L + 1)
    moved = (means.amax(dim=0) - means.amin(dim=0)).mean()
    return float(moved / (means[:, 0] - means[:, -1]).abs().mean())


def first_images(data: ImageDataset, count: int) -> tuple[Tensor, Tensor, list[str]]:
    """Return the first images of a data set in its fixed order, their targets and their ids."""
    return next(batches(data, fixed_order(data.image_ids)[:count], count))


def known_scores(
    entry: ProtocolEntry, model: PatchModel, maps: Sequence[Method], images: int, seed: int, settings: Mapping[str, Any]
) -> Tensor:
    """Return a protocol's scores of maps, image by image, (B, maps).

    The images are the first of the synthetic test split, in its fixed order.
    """
    test, others = (create_dataset("synthetic", split) for split in ("test", "val"))
    chosen, targets, ids = first_images(test, images)

    def companions() -> tuple[Tensor, Tensor]:
        further, classes, _ = first_images(others, 64)
        return further.to(model.evidence.weight), classes

    batch = Batch(chosen.to(model.evidence.weight), targets, ids, test.normalisation, companions)
    return scored(batch, entry, model, maps, seed, settings)


def scored(batch: Batch, entry: ProtocolEntry, model: nn.Module, maps: Sequence[Method], seed: int, settings: Mapping[str, Any]) -> Tensor:
    """Return a protocol's scores of maps of a batch, (B, maps)."""
    prepared = entry.prepare(model, batch, seed=seed, **settings) if entry.prepare else {}
    columns = entry.function(model, maps, batch, prepared, **settings)
    return torch.stack([columns[one.name]["score"] for one in maps], dim=1)
