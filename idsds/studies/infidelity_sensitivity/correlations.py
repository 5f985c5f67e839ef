"""Do metrics follow the quality of models? Rank correlations at three levels, methods beside a control, and how much is due to the map.

The table is that of :meth:`idsds.studies.infidelity_sensitivity.InfidelitySensitivity.judge`, or that of the study's 75 models
(burnpiro/xai-correlation).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from idsds.statistics.grouped import FEWEST, jackknife_interval, mean_of_groups, partial, spearman, without_each
from idsds.statistics.verdicts import verdicts
from idsds.studies.train_fractions import IDENTITY

#: What is correlated, and its label.
MEASURES = {
    "raw": "infidelity",
    "normalised": "infidelity, scale of the map taken out",
    "relative": "infidelity, scales of map and logit taken out",
    "sensitivity": "max-sensitivity",
    "change": "squared change of the logit (no map)",
    "forecast": "squared change that the map predicts (the map's scale)",
}
QUALITIES = ("accuracy", "top5", "macro_f1", "weighted_f1", "weighted_precision")
#: The groups within which models are ranked; only models of one group are compared.
LEVELS: dict[str, tuple[str, ...]] = {
    "all models": (),
    "within data set": ("dataset",),
    "within architecture and data set": ("dataset", "model"),
}
WITHIN = list(LEVELS)[-1]
#: The column held fixed to see whether a measure says more about a model's quality than the logit's scale does.
GIVEN = " given change"
#: The random map.
CONTROL = "Random"
#: If methods differ by less than this fraction of the lowest infidelity, the map matters little.
LITTLE = 0.10


#: The level, the correlations of all models (columns, columns), and those without each group in turn; at the last level within each group,
#: (groups, columns, columns).
Matrices = tuple[str, np.ndarray, np.ndarray]


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Return the Spearman correlations, over models, of the metrics with the models' quality, at three levels.

    Each pair of columns takes the models that have both. The 95 % intervals hold for groups of models (an architecture on a data set),
    whose models share images and design; they cover neither other images nor, apart from the groups, other training seeds. Within
    architecture and data set it is Student's t over the groups' own coefficients. At the other levels each group is left out in turn
    (:func:`idsds.statistics.grouped.jackknife_interval`). Both need three groups that do not all agree.

    Args:
        table: one row per model and method: ``dataset``, ``model``, ``method``, and any of :data:`MEASURES` and :data:`QUALITIES`.

    Returns:
        One row per method, level, measure and quality: a quality of the models; ``change`` or ``forecast``, which show how far a measure
        follows the scale of the logit or of the map; or a quality ``given change``, the partial correlation. ``spearman`` (within
        architecture and data set the mean of the groups') with ``low`` and ``high``, NaN without an interval; ``models`` with all columns,
        ``dropped``, those without; ``groups`` with a coefficient of their own, or of all models; ``interval``, what it covers.
    """
    columns = [name for name in (*MEASURES, *QUALITIES) if name in table]
    rows = []
    for method, part in table.groupby("method", sort=False):
        matrices: dict[bytes, list[Matrices]] = {}  # once for all pairs defined for the same models
        for measure, quality, used in _pairs(columns):
            there = part[used].notna().all(axis=1).to_numpy()
            chosen = part[there]
            if there.tobytes() not in matrices:
                matrices[there.tobytes()] = _matrices(chosen, columns) if len(chosen) else []
            facts = {"method": method, "measure": measure, "quality": quality, "models": len(chosen), "dropped": len(part) - len(chosen)}
            places = [columns.index(name) for name in used]
            for level, *found in matrices[there.tobytes()]:
                point, others = (partial(each, *places) if len(places) == 3 else each[..., places[0], places[1]] for each in found)
                rows.append({**facts, "level": level, **_coefficient(level, point, others)})
            if not len(chosen):
                nothing = {"spearman": np.nan, "low": np.nan, "high": np.nan, "groups": 0, "interval": "no interval: no models"}
                rows += [{**facts, "level": level, **nothing} for level in LEVELS]
    return pd.DataFrame(rows).sort_values("level", key=lambda level: level.map(list(LEVELS).index), kind="stable", ignore_index=True)


def _pairs(columns: list[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield a measure, what it is correlated with, and the columns needed."""
    for measure in (name for name in MEASURES if name in columns):
        for other in (name for name in (*QUALITIES, "change", "forecast") if name in columns and name != measure):
            yield measure, other, [measure, other]
        if measure in ("raw", "normalised") and "change" in columns:
            for quality in (name for name in QUALITIES if name in columns):
                yield measure, f"{quality}{GIVEN}", [measure, quality, "change"]


def _coefficient(level: str, point: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """Return the columns ``spearman`` to ``interval`` of :func:`correlations`, from a coefficient's :data:`Matrices`."""
    groups = len(others)
    if level == WITHIN:
        others = others[np.isfinite(others)]  # a group that does not vary, or is too small, has none
        groups = len(others)
        point, low, high = np.clip(mean_of_groups(others), -1, 1)
        covers = f"95 % t interval over {groups} groups of models"
    else:
        low, high = jackknife_interval(float(point), others)
        covers = f"95 % jackknife over {groups} groups of models (Student's t on Fisher's z scale)"
    if np.isnan(low):
        why = "all agree" if np.isfinite(point) else "no correlation"
        covers = f"no interval: {groups} groups of models" + (f", {why}" if groups >= FEWEST else "")
    return {"spearman": float(point), "low": float(low), "high": float(high), "groups": groups, "interval": covers}


def _matrices(table: pd.DataFrame, columns: list[str]) -> list[Matrices]:
    """Return the correlations of the models of one method, at each level."""
    values, cells = table[columns].to_numpy(float), table.groupby(["dataset", "model"], sort=False).ngroup().to_numpy()
    found = []
    for level, keys in LEVELS.items():
        groups = table.groupby(list(keys)).ngroup().to_numpy() if keys else np.zeros(len(table), int)
        if level == WITHIN:
            others = np.stack([spearman(values[cells == cell], groups[cells == cell]) for cell in np.unique(cells)])
        else:
            others = without_each(values, groups, cells)
        found.append((level, spearman(values, groups), others))
    return found


def beside_random(table: pd.DataFrame) -> pd.DataFrame:
    """Return how far each method's relative infidelity is below that of a random map, on the same models.

    Args:
        table: from :meth:`idsds.studies.infidelity_sensitivity.InfidelitySensitivity.judge`.

    Returns:
        One row per method but :data:`CONTROL`: ``difference`` of ``relative`` (method - control; below 0: the method is better), the mean
        of the groups' (a group: an architecture on a data set), with ``low`` and ``high`` (95 %, Student's t over groups); the ``verdict``
        that it is below 0; ``models`` with both, ``groups``, ``interval``. Empty without a control.
    """
    identity = list(IDENTITY)
    control = table[table["method"] == CONTROL].set_index(identity)["relative"].rename("control")
    rows = []
    for method, part in table[table["method"] != CONTROL].groupby("method", sort=False) if len(control) else ():
        both = part.join(control, on=identity).dropna(subset=["relative", "control"])
        own = (both["relative"] - both["control"]).groupby([both["dataset"], both["model"]], sort=False).mean().to_numpy()
        difference, low, high = mean_of_groups(own)
        interval = f"{'no interval:' if np.isnan(low) else '95 % t interval over'} {len(own)} groups of models"
        facts = {"method": method, "difference": difference, "low": low, "high": high, "verdict": str(verdicts(-high, -low))}
        rows.append({**facts, "models": len(both), "groups": len(own), "interval": interval})
    return pd.DataFrame(rows, columns=["method", "difference", "low", "high", "verdict", "models", "groups", "interval"])


def map_part(table: pd.DataFrame) -> pd.DataFrame:
    """Decompose the infidelity of the same models under several methods; controls are left out.

    Models that lack a method, or have an infidelity of 0 or a ``doubtful`` reading, are left out.

    Args:
        table: one row per model and method: ``dataset``, ``model``, ``fraction``, ``method``, ``raw``, and optionally ``seed``,
            ``family``, ``doubtful``.

    Returns:
        One row for all architectures and one for each: ``architecture``, ``models``, ``methods``, ``median_spread`` (highest infidelity
        of a model over its lowest, minus 1), ``spread`` (mean of the medians of groups: an architecture on a data set) with ``low`` and
        ``high`` (95 %, Student's t over groups); the fractions of the variance of the logarithm of infidelity ``between_models``,
        ``between_methods`` and ``rest``; the ``verdict`` that ``spread`` is below :data:`LITTLE`.
    """
    rows = table[table["raw"] > 0].assign(seed=table.get("seed", 0))
    if "family" in rows:
        rows = rows[rows["family"] != "control"]
    if "doubtful" in rows:
        rows = rows[~rows["doubtful"].astype(bool)]
    logs = np.log(rows.pivot_table(index=list(IDENTITY), columns="method", values="raw")).dropna()
    names = list(dict.fromkeys(logs.index.get_level_values("model")))
    parts = [("all", logs)] + [(name, logs[logs.index.get_level_values("model") == name]) for name in names if len(names) > 1]
    found = pd.DataFrame([{"architecture": name, **_taken_apart(part)} for name, part in parts if part.size])
    return found.assign(verdict=verdicts(-found["high"], -found["low"], -LITTLE)) if len(found) else found


def _taken_apart(logs: pd.DataFrame) -> dict[str, float]:
    """Return the columns ``models`` to ``rest`` of :func:`map_part` from the logarithms of infidelity, models x methods."""
    values, spreads = logs.to_numpy(), np.expm1(logs.max(axis=1) - logs.min(axis=1))
    mean, low, high = mean_of_groups(spreads.groupby(level=["dataset", "model"]).median().to_numpy())
    total = ((values - values.mean()) ** 2).sum()
    models = values.shape[1] * ((values.mean(axis=1) - values.mean()) ** 2).sum()
    methods = values.shape[0] * ((values.mean(axis=0) - values.mean()) ** 2).sum()
    shares = [models / total, methods / total, (total - models - methods) / total] if total else [np.nan] * 3
    facts = {"models": values.shape[0], "methods": values.shape[1], "median_spread": spreads.median()}
    facts |= {"spread": mean, "low": low, "high": high}
    return facts | dict(zip(("between_models", "between_methods", "rest"), map(float, shares), strict=True))


def study_table() -> pd.DataFrame:
    """The study's 75 models under four methods: ``raw`` infidelity, ``sensitivity``, ``weighted_precision`` and ``weighted_f1``."""
    from idsds import published

    return published.xai_correlation_models().rename(columns={"infidelity": "raw", "train_fraction": "fraction"})
