"""Do infidelity and max-sensitivity follow the quality of a model? The study's question, asked of our models and of its printed numbers.

Raw infidelity is a mean of squared logits. It grows with the scale of a map and with the scale of the model's logits, so that a model whose
logits change more has a higher infidelity whatever its maps are. Three readings tell the two apart:

* ``raw``: as the paper defines it and the study used it;
* ``normalised``: each map is first multiplied by the factor that suits it best, so that its scale does not matter;
* ``relative``: that, divided by the infidelity of a map of zeros, which is the mean squared change of the logit: 0 where the map foretells
  every change, 1 where it is no better than saying that nothing will change. The model's scale does not matter either.

Source: Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019 (arXiv 1901.09392); burnpiro/xai-correlation.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field, PositiveInt
from scipy.stats import rankdata
from torch import Tensor

from idsds.benchmark import evaluate
from idsds.methods.base import TENFOLD
from idsds.protocols.infidelity import Perturbation
from idsds.settings import MethodName
from idsds.statistics.resampling import check_options, rng_for
from idsds.statistics.seeds import seed_interval
from idsds.study import IDENTITY, ModelsSettings, members, quality

#: What is correlated, and what each is called.
MEASURES = {
    "raw": "infidelity",
    "normalised": "infidelity, scale of the map taken out",
    "relative": "infidelity, scales of map and logit taken out",
    "sensitivity": "max-sensitivity",
    "change": "squared change of the logit (no map)",
}
QUALITIES = ("accuracy", "macro_f1", "weighted_precision")
#: Within what the models are ranked, so that only models that share it are compared with each other.
LEVELS: dict[str, tuple[str, ...]] = {
    "all models": (),
    "within data set": ("dataset",),
    "within architecture and data set": ("dataset", "model"),
}
WITHIN = list(LEVELS)[-1]
#: A bootstrap needs so many groups of models; with 4 to 6, what is called 95 % covers 80 to 85 %.
GROUPS = 10
#: A measure follows another where their Spearman correlation is above this.
FOLLOWS = 0.8
ZERO = "map of zeros"


class InfidelitySettings(ModelsSettings):
    """What ``params/*/infidelity_sensitivity.yaml`` may say; ``images`` are explained, quality is measured on all test images."""

    methods: Annotated[list[MethodName], Field(min_length=1)]
    images: PositiveInt
    perturbation: Perturbation = "gaussian"
    sigma: Annotated[float, Field(gt=0)] = 0.1
    radius: Annotated[float, Field(gt=0)] = 0.02
    samples: PositiveInt = 10


def zero_map(images: Tensor, targets: Tensor) -> Tensor:
    """A map that foretells no change: its infidelity is the mean squared change of the logit."""
    return images[:, :1] * 0


def judge(settings: InfidelitySettings, *, dry_run: bool = False, progress: bool = True) -> pd.DataFrame:
    """Infidelity, max-sensitivity and quality of every model and method; models that are not cached are trained first.

    Args:
        settings: validated.
        dry_run: return the passes that it takes, per data set, model and computation, and do nothing.
        progress: whether to show bars.

    Returns:
        One row per model and method: what identifies the model; means over the images of ``raw`` and ``normalised`` infidelity, of the
        raw infidelity ``raw_x10`` and the normalised one ``normalised_x10`` of the map times ten, and of ``sensitivity``; ``change``
        (infidelity of a map of zeros); ``relative`` = ``normalised`` / ``change``; the columns of :func:`idsds.study.quality`; ``images``
        with a score and ``nan`` without.
    """
    everyone = members(settings)
    frames = []
    for dataset, group in groupby(everyone, key=lambda member: member.dataset):
        mine = list(group)
        for protocol, methods, options in _protocols(settings):
            found = evaluate(
                {member.name: member.stage for member in mine},
                methods,
                dataset,
                protocol,
                settings.images,
                output=None if dry_run else f"{settings.output}/{dataset}/{protocol}",
                dry_run=dry_run,
                progress=progress,
                device=settings.device,
                precision=settings.precision,
                **options,
            )
            frames.append(found.assign(dataset=dataset, protocol=protocol, name=found["model"]).drop(columns="model"))
    table = pd.concat(frames, ignore_index=True)
    if dry_run:
        return table
    table = per_model(table)
    identity = pd.DataFrame([{**member.identity, "name": member.name} for member in everyone])
    qualities = quality(settings, progress=progress).drop(columns="interval")
    return identity.merge(table, on=["dataset", "name"]).merge(qualities, on=list(IDENTITY)).drop(columns="name")


def _protocols(settings: InfidelitySettings) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Protocol, methods and options of the two evaluations of a data set."""
    names = dict.fromkeys(settings.methods)
    tenfold = dict.fromkeys(f"{name}{TENFOLD}" for name in settings.methods)
    noise = {"perturbation": settings.perturbation, "sigma": settings.sigma}
    yield "infidelity", {**names, **tenfold, ZERO: zero_map}, {**noise, "samples": settings.samples}
    yield "max_sensitivity", names, {"radius": settings.radius, "samples": settings.samples}


def per_model(records: pd.DataFrame) -> pd.DataFrame:
    """Means over images from records of both protocols, one row per data set, model ``name`` and method; see :func:`judge`."""
    keys = ["dataset", "name", "method"]
    infidelity = records[records["protocol"] == "infidelity"]
    means = infidelity.groupby(keys, sort=False)[["raw", "normalised"]].mean().reset_index()
    tenfold = means["method"].str.endswith(TENFOLD)
    rescaled = means[tenfold].assign(method=means["method"].str.removesuffix(TENFOLD))
    nothing = means[means["method"] == ZERO].set_index(["dataset", "name"])["raw"].rename("change")
    table = means[~tenfold & (means["method"] != ZERO)].merge(rescaled, on=keys, suffixes=("", "_x10"))
    table = table.join(nothing, on=["dataset", "name"])
    table["relative"] = table["normalised"] / table["change"]
    sensitivity = records[records["protocol"] == "max_sensitivity"].groupby(keys)["score"]
    table = table.join(sensitivity.mean().rename("sensitivity"), on=keys)
    counts = infidelity.groupby(keys)["score"].agg(images="count", nan=lambda score: score.isna().sum())
    families = infidelity.groupby(keys)["family"].first()
    return table.join(counts, on=keys).join(families, on=keys)


def spearman(values: np.ndarray, groups: Sequence[Any]) -> np.ndarray:
    """Spearman correlations of all columns within groups: the values are ranked in each group, and the ranks' deviations pooled.

    With one group it is the ordinary coefficient; with groups of equal size and no ties the mean of theirs.

    Args:
        values: (models, columns).
        groups: of each model.

    Returns:
        (columns, columns); NaN where a column does not vary within any group.
    """
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    cross = sum(_cross(values[codes == code]) for code in range(codes.max() + 1))
    return _normed(cross)


def _cross(values: np.ndarray) -> np.ndarray:
    """Products of the deviations of the columns' ranks, (columns, columns)."""
    deviations = rankdata(values, axis=0) - (len(values) + 1) / 2
    return deviations.T @ deviations


def _normed(cross: np.ndarray) -> np.ndarray:
    spread = np.sqrt(np.diagonal(cross, axis1=-2, axis2=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return cross / (spread[..., :, None] * spread[..., None, :])


def correlations(table: pd.DataFrame, confidence: float = 0.95, resamples: int = 1_000, seed: int = 0) -> pd.DataFrame:
    """Spearman correlations over models of what the metrics say with how good the models are, at three levels.

    Each pair of columns takes the models that have both. Intervals hold for groups of models (an architecture on a data set), whose models
    share images and design; they cover neither other images nor other training seeds. Within architecture and data set it is Student's t
    over the groups' own coefficients, of three groups or more that do not all agree. At the other levels groups cannot be taken apart, and
    a percentile bootstrap draws whole groups; of fewer than :data:`GROUPS` it would be far too narrow, and there is none.

    Args:
        table: one row per model and method: ``dataset``, ``model``, ``method``, and those of :data:`MEASURES` and :data:`QUALITIES` that
            there are.
        confidence, resamples, seed: of the intervals and the bootstrap.

    Returns:
        One row per method, level, measure and quality (a ``change`` as the quality says how far a measure goes by the logit's scale):
        ``spearman`` (within architecture and data set the mean of the groups') with ``low`` and ``high``, NaN without an interval;
        ``models`` that have both, ``dropped``, those that lack one; ``groups`` with a coefficient of their own, or of all models;
        ``interval``, what it covers.
    """
    check_options(confidence, resamples=resamples)
    measures = [name for name in MEASURES if name in table]
    others = [name for name in (*QUALITIES, "change") if name in table]
    columns = [*measures, *(name for name in others if name not in measures)]
    rows = []
    for method, part in table.groupby("method", sort=False):
        pooled: dict[bytes, dict[str, np.ndarray]] = {}  # the bootstrap once for all pairs that the same models have
        for measure in measures:
            for other in (name for name in others if name != measure):
                there = part[[measure, other]].notna().all(axis=1).to_numpy()
                chosen, pair = part[there], [columns.index(measure), columns.index(other)]
                facts = {"method": method, "measure": measure, "quality": other, "models": len(chosen), "dropped": len(part) - len(chosen)}
                if there.tobytes() not in pooled:
                    pooled[there.tobytes()] = _pooled(chosen, columns, confidence, resamples, seed)
                for level, found in pooled[there.tobytes()].items():
                    point, low, high = found[:, pair[0], pair[1]]
                    groups = chosen.groupby(["dataset", "model"]).ngroups
                    interval = f"{100 * confidence:g} % bootstrap over {groups} groups of models"
                    if np.isnan(low):
                        interval = f"no interval: {groups} groups of models" if groups < GROUPS else "no interval: no correlation"
                    rows.append(
                        {**facts, "level": level, "spearman": point, "low": low, "high": high, "groups": groups, "interval": interval}
                    )
                rows.append({**facts, "level": WITHIN, **_within(chosen, [measure, other], confidence)})
    return pd.DataFrame(rows).sort_values("level", key=lambda level: level.map(list(LEVELS).index), kind="stable", ignore_index=True)


def _within(table: pd.DataFrame, pair: list[str], confidence: float) -> dict[str, Any]:
    """The mean of the groups' own coefficients with Student's t interval."""
    own = np.array([spearman(rows[pair].to_numpy(float), [0] * len(rows))[0, 1] for _, rows in table.groupby(["dataset", "model"])])
    own = own[~np.isnan(own)]  # a group that does not vary, or of one model, has none
    facts = {"spearman": own.mean() if len(own) else np.nan, "low": np.nan, "high": np.nan, "groups": len(own)}
    if len(own) < 3:
        return {**facts, "interval": f"no interval: {len(own)} groups of models"}
    if np.ptp(own) < 1e-12:  # a spread of 0 among a few groups is no certainty
        return {**facts, "interval": f"no interval: all {len(own)} groups of models agree"}
    _, low, high = seed_interval(own, confidence)  # its t interval is over any independent numbers
    interval = f"{100 * confidence:g} % t interval over {len(own)} groups of models"
    return {**facts, "low": max(low, -1.0), "high": min(high, 1.0), "interval": interval}


def _pooled(table: pd.DataFrame, columns: list[str], confidence: float, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """By level other than the last, the correlations of all columns with their ends: (3, columns, columns)."""
    values, found = table[columns].to_numpy(float), {}
    cells = table.groupby(["dataset", "model"], sort=False).ngroup().to_numpy()
    where = [np.flatnonzero(cells == cell) for cell in np.unique(cells)]
    for level, keys in LEVELS.items():
        if level == WITHIN:
            continue
        groups = table.groupby(list(keys)).ngroup().to_numpy() if keys else np.zeros(len(table), int)
        point = spearman(values, groups) if len(table) else np.full((len(columns),) * 2, np.nan)
        ends = np.full((2, *point.shape), np.nan)
        if len(where) >= GROUPS:
            drawn = rng_for(seed, "groups of models", len(where)).integers(0, len(where), (resamples, len(where)))
            rows = (np.concatenate([where[cell] for cell in chosen]) for chosen in drawn)
            again = np.stack([spearman(values[each], groups[each]) for each in rows])
            with warnings.catch_warnings():  # a method whose value never varies has no correlation
                warnings.filterwarnings("ignore", message="All-NaN slice")
                ends = np.nanquantile(again, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
        found[level] = np.stack([point, *ends])
    return found


def study_table() -> pd.DataFrame:
    """The study's 75 printed rows with our names: ``raw`` infidelity, ``sensitivity``, ``weighted_precision`` and ``macro_f1``."""
    from idsds import published

    names = {"infidelity": "raw", "f1": "macro_f1", "train_fraction": "fraction"}
    return published.xai_correlation_models().rename(columns=names)


def findings(table: pd.DataFrame, ours: pd.DataFrame, study: pd.DataFrame) -> list[str]:
    """What the numbers say, one sentence each.

    Args:
        table: from :func:`judge`.
        ours, study: from :func:`correlations`, of it and of the study's rows.
    """
    knowing = table[table["family"] != "control"]
    names = list(dict.fromkeys(knowing["method"]))
    said = []
    if names:
        said.append(_about_scale(knowing, ours[ours["method"].isin(names)]))
        for measure in ("raw", "relative", "sensitivity"):
            said.append(_about_quality(measure, ours[ours["method"].isin(names)]))
    for column, name in (("weighted_precision", "weighted precision (its accuracy)"), ("macro_f1", "F1")):
        said.append(
            f"The study's 75 models: {name} and infidelity {_spell(study, 'raw', column)}, and max-sensitivity "
            f"{_spell(study, 'sensitivity', column)}."
        )
    return said


def _about_scale(table: pd.DataFrame, found: pd.DataFrame) -> str:
    factor = table["raw_x10"] / table["raw"]
    moved = (table["normalised_x10"] / table["normalised"] - 1).abs()
    with_change = found[(found["measure"] == "raw") & (found["quality"] == "change")].dropna(subset="spearman")
    pooled, within = (with_change[with_change["level"] == level].set_index("method")["spearman"] for level in ("all models", WITHIN))
    follows = pooled > FOLLOWS
    beside = ", ".join(f"{name} ({rho:+.2f})" for name, rho in pooled[~follows].items())
    return (
        f"A map times ten orders the pixels alike: its raw infidelity is {factor.median():.3g} times as high in the median, its normalised "
        f"one differs by {moved.max():.1g} at the most. Raw infidelity follows the scale of the gradients for {follows.sum()} of "
        f"{len(pooled)} methods (Spearman correlation above {FOLLOWS}, over all models, with the squared change of the logit, which no map "
        f"plays a part in){f'; not for {beside}' if beside else ''}. {_extent('These correlations', pooled)}; "
        f"{_extent('those within architecture and data set', within)}."
    )


def _extent(what: str, values: pd.Series) -> str:
    return f"{what} are {values.min():+.2f} to {values.max():+.2f}" if len(values) else f"{what} are not defined"


def _about_quality(measure: str, found: pd.DataFrame) -> str:
    rows = found[(found["measure"] == measure) & (found["quality"] == "accuracy")]
    parts = []
    for level in LEVELS:
        here = rows[rows["level"] == level].dropna(subset="spearman")
        if len(here) == 1:
            parts.append(_with_ends(next(here.itertuples())))
        elif len(here):
            bounded = here.dropna(subset=["low", "high"])
            decided = ((bounded["low"] > 0) | (bounded["high"] < 0)).sum()
            said = f"{decided} of {len(bounded)} intervals without 0" if len(bounded) else "no intervals"
            parts.append(
                f"{here['spearman'].min():+.2f} to {here['spearman'].max():+.2f} {_level(level)} "
                f"({said}; {_numbers(here['models'])} models in {_numbers(here['groups'])} groups)"
            )
    what = MEASURES[measure]
    dropped = f" ({rows['dropped'].max()} models at the most lack a value)" if rows["dropped"].any() else ""
    return f"{what[0].upper()}{what[1:]} and accuracy correlate by " + (", ".join(parts) or "nothing that is defined") + f"{dropped}."


def _numbers(counts: pd.Series) -> str:
    return f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"


def _level(level: str) -> str:
    return level if level.startswith("within") else f"over {level}"


def _with_ends(row: Any) -> str:
    ends = f"(no interval: {row.groups} groups)" if np.isnan(row.low) else f"[{row.low:+.2f}, {row.high:+.2f}]"
    return f"{row.spearman:+.2f} {ends} {_level(row.level)}"


def _spell(found: pd.DataFrame, measure: str, quality: str) -> str:
    return ", ".join(map(_with_ends, found[(found["measure"] == measure) & (found["quality"] == quality)].itertuples()))
