"""How much of infidelity is due to the map: the spread between methods on one model, compared with the spread between models."""

from __future__ import annotations

import numpy as np
import pandas as pd

from idsds.statistics.grouped import mean_of_groups
from idsds.statistics.verdicts import verdicts

#: If methods differ by less than this fraction of the lowest infidelity, the map matters little.
LITTLE = 0.10
MODEL = ["dataset", "model", "fraction", "seed"]


def map_part(table: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Decompose the infidelity of the same models under several methods; controls are left out.

    Models that lack a method, or have an infidelity of 0 or a ``doubtful`` reading, are left out.

    Args:
        table: one row per model and method: ``dataset``, ``model``, ``fraction``, ``method``, ``raw``, and optionally ``seed``,
            ``family``, ``doubtful``.
        confidence: of Student's t over groups of models (an architecture on a data set).

    Returns:
        One row for all architectures and one for each: ``architecture``, ``models``, ``methods``, ``median_spread`` (highest infidelity
        of a model over its lowest, minus 1), ``spread`` (mean of the groups' medians) with ``low`` and ``high``; the fractions of the
        variance of the logarithm of infidelity ``between_models``, ``between_methods`` and ``rest``; the ``verdict`` that ``spread`` is
        below :data:`LITTLE`.
    """
    rows = table[table["raw"] > 0].assign(seed=table.get("seed", 0))
    if "family" in rows:
        rows = rows[rows["family"] != "control"]
    if "doubtful" in rows:
        rows = rows[~rows["doubtful"].astype(bool)]
    logs = np.log(rows.pivot_table(index=MODEL, columns="method", values="raw")).dropna()
    names = list(dict.fromkeys(logs.index.get_level_values("model")))
    parts = [("all", logs)] + [(name, logs[logs.index.get_level_values("model") == name]) for name in names if len(names) > 1]
    found = pd.DataFrame([{"architecture": name, **_taken_apart(part, confidence)} for name, part in parts if part.size])
    return found.assign(verdict=verdicts(-found["high"], -found["low"], -LITTLE)) if len(found) else found


def _taken_apart(logs: pd.DataFrame, confidence: float) -> dict[str, float]:
    """Return the columns ``models`` to ``rest`` of :func:`map_part` from the logarithms of infidelity, models x methods."""
    values, spreads = logs.to_numpy(), np.expm1(logs.max(axis=1) - logs.min(axis=1))
    mean, low, high = mean_of_groups(spreads.groupby(level=["dataset", "model"]).median().to_numpy(), confidence)
    total = ((values - values.mean()) ** 2).sum()
    models = values.shape[1] * ((values.mean(axis=1) - values.mean()) ** 2).sum()
    methods = values.shape[0] * ((values.mean(axis=0) - values.mean()) ** 2).sum()
    shares = [models / total, methods / total, (total - models - methods) / total] if total else [np.nan] * 3
    facts = {"models": values.shape[0], "methods": values.shape[1], "median_spread": spreads.median()}
    facts |= {"spread": mean, "low": low, "high": high}
    return facts | dict(zip(("between_models", "between_methods", "rest"), map(float, shares), strict=True))
