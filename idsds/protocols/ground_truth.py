"""Judging the judges: do protocols put the exact map first, the random map last, and maps with growing noise in order?

On a :class:`~idsds.datasets.synthetic.PatchModel` the importance of each patch is a formula. Each protocol scores the exact map, the exact
map with more and more noise, and noise alone; the table says what it made of them, and at what cost.

Source: the question is that of the xai-correlation study; known ground truth in the spirit of FunnyBirds (Hesse, Schaub-Meyer, Roth, ICCV
2023, arXiv 2308.06248).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from idsds.datasets import create_dataset, fixed_order
from idsds.datasets.synthetic import PIXELS, PatchModel
from idsds.methods.base import Method, MethodEntry, Passes
from idsds.protocols.base import PROTOCOLS, Batch, check_count, list_protocols
from idsds.protocols.single_deletion import rank_correlation
from idsds.randomness import Draws
from idsds.training import batches

LEVELS = (0.0, 0.25, 0.5, 1.0, 2.0)
# The exact map holds contributions, and only the removal of squares reads a map as such.
SETTINGS: dict[str, dict[str, Any]] = {"infidelity": {"perturbation": "square", "sigma": 0.25}}


def _known(model: PatchModel, images: Tensor, targets: Tensor, *, level: float = 0.0, draws: Draws) -> Tensor:
    exact = model.exact_maps(images, targets)[..., ::PIXELS, ::PIXELS]  # (B, 1, rows, columns)
    noise = draws.normal(1)[:, 0, :1, ::PIXELS, ::PIXELS]
    spread = exact.flatten(1).std(dim=1).view(-1, 1, 1, 1)
    patches = noise if level == torch.inf else exact + level * spread * noise
    return patches.repeat_interleave(PIXELS, dim=2).repeat_interleave(PIXELS, dim=3)


class KnownMap(Method):
    """The exact patch importances of a :class:`~idsds.datasets.synthetic.PatchModel`, with noise.

    Args:
        model: the model in closed form.
        level: standard deviation of the noise per patch, in units of the standard deviation of the image's exact importances; infinite:
            noise alone.
        seed: of the noise, which is the same for all levels of one image and keyed by its id.
    """

    def __init__(self, model: PatchModel, level: float = 0.0, seed: int = 0) -> None:
        if not isinstance(model, PatchModel):
            raise TypeError(f"exact importances are known for a PatchModel, not for a {type(model).__name__}")
        if not level >= 0:
            raise ValueError(f"level must be at least 0, not {level!r}")
        self.name = "noise" if level == torch.inf else f"exact + {level:g} noise" if level else "exact"
        self.model, self.transform, self.seed, self.batch = model, "", seed, None
        self.options = {"level": level}
        self.entry = MethodEntry(name=self.name, function=_known, family="control", passes=Passes(0), noise="known map")


def properties(scores: Tensor, higher_is_better: bool, levels: Sequence[float] = LEVELS) -> dict[str, float]:
    """What a protocol made of maps that get worse from left to right.

    Args:
        scores: (B, L + 1): the map with noise of each level, 0 first, then noise alone.
        higher_is_better: the direction of the score.
        levels: the L levels, rising from 0.

    Returns:
        ``exact_first``: share of images whose exact map beats all others; ``random_last``: share for which noise alone loses to all others;
        ``ordering``: mean Spearman correlation between less noise and a better score, over images where it is defined; ``resolution``: the
        least level whose scores are worse than the exact map's by more than two standard errors of the mean over images, infinite if only
        noise alone is, NaN if not even that; ``separation``: mean of exact minus noise alone, over its standard deviation over images (how
        well one image tells them apart); ``undefined``: share of scores that are NaN.

    Raises:
        ValueError: scores that do not fit the levels, or levels that do not rise from 0.
    """
    levels = list(levels)
    if not levels or levels[0] != 0 or sorted(set(levels)) != levels:
        raise ValueError(f"levels must rise from 0, not {levels}")
    if scores.ndim != 2 or scores.shape[1] != len(levels) + 1:
        raise ValueError(f"scores must be (B, {len(levels) + 1}) for {len(levels)} levels and noise alone, not {tuple(scores.shape)}")
    goodness = scores.double() if higher_is_better else -scores.double()
    order = -torch.arange(goodness.shape[1], dtype=torch.float64).expand_as(goodness)
    ordering = rank_correlation(goodness, order)
    loss = goodness[:, :1] - goodness[:, 1:]  # (B, L): positive where the exact map is better
    present = (~loss.isnan()).sum(dim=0)
    mean = loss.nanmean(dim=0)
    deviation = ((loss - mean).square().nansum(dim=0) / (present - 1)).sqrt()
    told_apart = mean > 2 * deviation / present.sqrt()
    resolved = [level for level, told in zip([*levels[1:], torch.inf], told_apart.tolist(), strict=True) if told]
    return {
        "exact_first": float((loss > 0).all(dim=1).double().mean()),
        "random_last": float((goodness[:, :-1] > goodness[:, -1:]).all(dim=1).double().mean()),
        "ordering": float(ordering.nanmean()),
        "resolution": resolved[0] if resolved else torch.nan,
        "separation": float(mean[-1] / deviation[-1]),
        "undefined": float(scores.isnan().double().mean()),
    }


def judge(
    protocols: Sequence[str] | None = None,
    model: PatchModel | None = None,
    *,
    images: int = 64,
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
    settings: Mapping[str, Mapping[str, Any]] = SETTINGS,
) -> pd.DataFrame:
    """The table protocol x property.

    Args:
        protocols: names; None: all that score images.
        model: the model in closed form; None: one with interactions and saturation.
        images: of the synthetic test split, the first so many of its fixed order.
        levels: of noise, rising from 0.
        seed: of the noise and of the protocols.
        settings: of single protocols, by name; the others run with their defaults.

    Returns:
        One row per protocol: ``protocol``; the columns of :func:`properties`; ``forward``, the protocol's own forward passes per image for
        one method; and ``maps``, how many maps it asks of the method per image.

    Raises:
        UnknownNameError: for an unknown protocol, before any work is done.
    """
    check_count("images", images)
    entries = [PROTOCOLS[name] for name in (list_protocols("image") if protocols is None else protocols)]
    model = PatchModel(interaction=1.0, saturation=2.0) if model is None else model
    data = create_dataset("synthetic", "test")
    chosen, targets, ids = next(batches(data, fixed_order(data.image_ids)[:images], images))
    batch = Batch(chosen.to(model.evidence.weight), targets, ids, data.normalisation)
    methods = [KnownMap(model, level, seed) for level in (*levels, torch.inf)]
    rows = []
    for entry in entries:
        own = dict(settings.get(entry.name, {}))
        prepared = entry.prepare(model, batch, seed=seed, **own) if entry.prepare else {}
        columns = entry.function(model, methods, batch, prepared, **own)
        scores = torch.stack([columns[method.name]["score"] for method in methods], dim=1)
        one = copy.copy(methods[0])
        one.entry = replace(one.entry, passes=Passes(0, 1))  # a map counts as one backward pass, and nothing else does
        cost = entry.passes([one], **own) + entry.prepare_passes(**own)
        rows.append(
            {
                "protocol": entry.name,
                **properties(scores, entry.higher_is_better, levels),
                "forward": cost.forward,
                "maps": cost.backward,
            }
        )
    return pd.DataFrame(rows)
