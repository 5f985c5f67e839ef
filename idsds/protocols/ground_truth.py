"""Judging the judges: do protocols put the exact map first, the random map last, and maps with growing noise in order?

On a :class:`~idsds.datasets.synthetic.PatchModel` the importance of each patch is a formula. Each protocol scores the exact map, the exact
map with more and more noise, and noise alone; the table says what it made of them, at what cost, and whether the same map gets the same
score on another model that labels every image alike. The known importance of a patch is what its deletion does to the logit, so that
single deletion has the right order by construction; of the others it is asked whether they find the same. Protocols that do not ask
whether a map is right (stability, sanity checks) are run too, and called what they are: tests to pass.

Source: the question is that of the xai-correlation study; known ground truth in the spirit of FunnyBirds (Hesse, Schaub-Meyer, Roth, ICCV
2023, arXiv 2308.06248).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from idsds.datasets import create_dataset, fixed_order
from idsds.datasets.synthetic import PIXELS, PatchModel
from idsds.methods.base import Method, MethodEntry, Passes
from idsds.protocols.base import PROTOCOLS, Batch, ProtocolEntry, check_count, list_protocols
from idsds.protocols.single_deletion import rank_correlation
from idsds.randomness import Draws
from idsds.training import batches

LEVELS = (0.0, 0.25, 0.5, 1.0, 2.0)
SETTINGS: dict[str, dict[str, Any]] = {
    # The exact map holds contributions, and only the removal of squares reads a map as such.
    "infidelity": {"perturbation": "square", "sigma": 0.25},
    # A rotation turns stripes into what no class listens to and moves every probability by more than the threshold: no image would count.
    "augmentation_robustness": {"group": "filters"},
    # The model has one layer: with more depths the first of them would change nothing.
    "sanity_check": {"depths": 1},
}
#: Protocols that a known map cannot be put to, with the reason.
NOT_APPLICABLE = {"hyperparameter_sensitivity": "a map that is given has no hyperparameters"}
#: Protocols that do not ask whether a map is right: what they ask. Each is a test that a method may pass or not; its order of maps says how
#: the noise was drawn: once per image, whatever the net or the change of the image.
ASKS = {
    "max_sensitivity": "asks for a map that does not change with the image, as a noise map that is drawn once per image does not",
    "augmentation_robustness": "asks for a map that does not change with the image, as a noise map that is drawn once per image does not",
    "sanity_check": "asks for a map that changes with the model, which a noise map that is drawn once per image does not",
}
DROPS = "has it easy: the truth is the drop of a patch"
#: What the table cannot tell, as the known importance is what the protocol itself measures, or nearly so.
OWES = {
    "single_deletion": f"{DROPS}, which is what it measures",
    "idsds": f"{DROPS}, which is what it measures; on a model in closed form it is the same as single_deletion",
    "infidelity": "reads maps as contributions of removed squares here; the default, gaussian noise, reads them as gradients",
}
NOTES = {**OWES, **ASKS, **NOT_APPLICABLE}
RANKS, COMPARES = 0.5, 0.5  # least ordering of a protocol that can rank, largest model_shift of one that can compare models
VERDICTS = (
    "ranks methods on one model, comparable between models",
    "ranks methods on one model",
    "neither",
    "does not apply",
    "a test to pass, not a ranking",
)


def known_models() -> dict[str, PatchModel]:
    """Models that label every synthetic image correctly, and differ in what should not matter for judging a map.

    In float64, so that the drop of a patch without evidence is 0 and not a rounding error that takes a rank.
    """
    return {
        "saturating, with interactions": PatchModel(interaction=1.0, saturation=2.0).double(),
        "half its gain": PatchModel(interaction=1.0, saturation=2.0, gain=2.0).double(),
        "additive": PatchModel().double(),
    }


def _known(model: PatchModel, images: Tensor, targets: Tensor, *, level: float = 0.0, draws: Draws) -> Tensor:
    exact = model.exact_maps(images, targets)[..., ::PIXELS, ::PIXELS]  # (B, 1, rows, columns)
    noise = draws.normal(1)[:, 0, :1, ::PIXELS, ::PIXELS]
    mean, spread = (found.view(-1, 1, 1, 1) for found in (exact.flatten(1).mean(dim=1), exact.flatten(1).std(dim=1)))
    # Signal and noise by share, so that maps of all levels have one scale: a metric that minds the scale is not told the level by it.
    share = 0.0 if level == torch.inf else (1 + level**2) ** -0.5
    patches = mean + share * (exact - mean) + (1 - share**2) ** 0.5 * spread * noise
    return patches.repeat_interleave(PIXELS, dim=2).repeat_interleave(PIXELS, dim=3)


class KnownMap(Method):
    """The exact patch importances of a :class:`~idsds.datasets.synthetic.PatchModel`, with noise.

    Args:
        model: the model in closed form.
        level: standard deviation of the noise per patch over that of the exact importances in it; infinite: noise alone. The map has the
            mean and, in expectation, the spread of the exact one at every level; it correlates with it to ``1 / sqrt(1 + level^2)``.
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


def model_shift(scores: Sequence[Tensor]) -> float:
    """How far the scores of one map move from model to model, in units of what tells the exact map from noise.

    ``mean over maps (max - min over models of the mean score) / mean over models |mean score of exact - of noise alone|``

    Args:
        scores: per model (B, L + 1): as for :func:`properties`. Means over images leave undefined scores out.

    Returns:
        0 where a score means the same on every model, about 1 where a change of the model does as much as replacing the exact map by noise;
        NaN for fewer than two models, or where no score is defined.
    """
    if len(scores) < 2:
        return torch.nan
    means = torch.stack([each.double().nanmean(dim=0) for each in scores])  # (models, L + 1)
    moved = (means.amax(dim=0) - means.amin(dim=0)).mean()
    return float(moved / (means[:, 0] - means[:, -1]).abs().mean())


def verdict(row: Mapping[str, Any]) -> str:
    """One of :data:`VERDICTS`, from a row of :func:`judge`'s table.

    A protocol ranks where the better map gets the better score (``ordering`` above 0.5) and the mean over the images tells the exact map
    from it with some noise (``resolution`` finite). It is comparable between models where, moreover, changing the model moves a score by
    less than half of what replacing the exact map by noise does (``model_shift`` below 0.5). A protocol of :data:`ASKS` is a test to pass,
    whatever order it finds.
    """
    if not row["applies"]:
        return VERDICTS[3]
    if row["protocol"] in ASKS:
        return VERDICTS[4]
    if not (row["ordering"] > RANKS and row["resolution"] < torch.inf):
        return VERDICTS[2]
    return VERDICTS[0] if row["model_shift"] < COMPARES else VERDICTS[1]


def refuse_data_sets(entries: Sequence[ProtocolEntry]) -> None:
    """Raise ValueError, naming what to call, for a protocol that scores a method over a whole data set: no single image has a score."""
    for entry in entries:
        if entry.level == "data set":
            raise ValueError(f"protocol {entry.name!r} scores a method over a whole data set and not a map of one image: call {entry.call}")


def known_scores(
    entry: ProtocolEntry, model: PatchModel, images: int, levels: Sequence[float], seed: int, settings: Mapping[str, Any]
) -> Tensor:
    """What a protocol makes of the exact map, of it with noise of each level, and of noise alone, (B, L + 1)."""
    data = create_dataset("synthetic", "test")
    chosen, targets, ids = next(batches(data, fixed_order(data.image_ids)[:images], images))
    batch = Batch(chosen.to(model.evidence.weight), targets, ids, data.normalisation)
    methods = [KnownMap(model, level, seed) for level in (*levels, torch.inf)]
    prepared = entry.prepare(model, batch, seed=seed, **settings) if entry.prepare else {}
    columns = entry.function(model, methods, batch, prepared, **settings)
    return torch.stack([columns[method.name]["score"] for method in methods], dim=1)


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
        protocols: names; None: all that score single images.
        model: the model in closed form that maps are known for; None: the first of :func:`known_models`, and the others beside it to see
            whether scores can be compared between models.
        images: of the synthetic test split, the first so many of its fixed order.
        levels: of noise, rising from 0.
        seed: of the noise and of the protocols.
        settings: of single protocols, by name; the others run with their defaults.

    Returns:
        One row per protocol: ``protocol``; the columns of :func:`properties`; :func:`model_shift`; ``forward``, the protocol's own forward
        passes per image for one method; ``maps``, how many maps it asks of the method per image; ``applies``; ``settings``, those that are
        not defaults; ``note``, the reason why the protocol does not apply, what it asks instead of correctness, or what its order owes to
        how the truth is defined; ``verdict``. A property that does not apply is NaN.

    Raises:
        UnknownNameError: for an unknown protocol, before any work is done.
        ValueError: for a protocol over a whole data set.
    """
    check_count("images", images)
    entries = [PROTOCOLS[name] for name in (list_protocols("image") if protocols is None else protocols)]
    refuse_data_sets(entries)
    models = list(known_models().values()) if model is None else [model]
    rows = []
    for entry in entries:
        own = dict(settings.get(entry.name, {}))
        row: dict[str, Any] = {"protocol": entry.name, "applies": entry.name not in NOT_APPLICABLE}
        if row["applies"]:
            scores = [known_scores(entry, each, images, levels, seed, own) for each in models]
            row |= properties(scores[0], entry.higher_is_better, levels) | {"model_shift": model_shift(scores)}
        one = KnownMap(models[0], 0.0, seed)
        one.entry = replace(one.entry, passes=Passes(0, 1))  # a map counts as one backward pass, and nothing else does
        cost = entry.passes([one], **own) + entry.prepare_passes(**own)
        row |= {"forward": cost.forward, "maps": cost.backward, "settings": ", ".join(f"{key}={value}" for key, value in own.items())}
        rows.append({**row, "note": NOTES.get(entry.name, "")})
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    return table.assign(verdict=[verdict(row) for row in table.to_dict("records")])


COLUMNS = [
    "protocol",
    "exact_first",
    "random_last",
    "ordering",
    "resolution",
    "separation",
    "model_shift",
    "undefined",
    "forward",
    "maps",
    "applies",
    "settings",
    "note",
]
