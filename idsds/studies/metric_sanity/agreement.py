"""Which metrics say the same: Kendall's tau between the rankings of methods by every pair of metrics, on trained nets."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd

from idsds.statistics.intervals import percentile_ends, rng_for
from idsds.statistics.rankings import kendall, weighted_means


def agreement(records: Mapping[str, pd.DataFrame], resamples: int = 500, seed: int = 0) -> pd.DataFrame:
    """Compare the rankings of methods by pairs of metrics.

    Methods are ranked by their mean over images, on each model; tau-b is averaged over the models on which it is defined. Controls are
    left out: whether methods are above them is another question.

    Args:
        records: by metric, the records of :func:`idsds.evaluate`, with the ``direction`` of the score. Metrics may have other images.
        resamples: of the bootstrap over images, the same images for all metrics.

    Returns:
        One row per pair of metrics: ``first``, ``second``, ``tau``, ``low``, ``high`` (95 % percentile interval over images), ``models``,
        ``methods`` (the most that both have ranked on a model). NaN where a metric ranks no two methods.
    """
    means = {name: _means(frame, resamples, seed) for name, frame in records.items()}
    rows = []
    for first, second in combinations(records, 2):
        taus, methods = [], 0
        for model in [model for model in means[first] if model in means[second]]:
            one, other = means[first][model], means[second][model]
            shared = one.columns.intersection(other.columns)
            taus.append(kendall(one[shared].to_numpy(), other[shared].to_numpy(), skip_nan=True))
            methods = max(methods, len(shared))
        defined = np.array([each for each in taus if np.isfinite(each[0])])
        tau = low = high = np.nan
        if len(defined):
            tau, *drawn = np.nanmean(defined, axis=0)
            low, high = (end.item() for end in percentile_ends(np.array(drawn)[np.isfinite(drawn), None], 0.95))
        rows.append((first, second, tau, low, high, len(defined), methods))
    return pd.DataFrame(rows, columns=["first", "second", "tau", "low", "high", "models", "methods"])


def _means(records: pd.DataFrame, resamples: int, seed: int) -> dict[str, pd.DataFrame]:
    """Return by model the means of the methods (1 + resamples, methods), those of all images first."""
    sign = -1 if (records["direction"] == "lower is better").any() else 1
    used = records[records["family"] != "control"]
    found = {}
    for model, rows in used.groupby("model", sort=False):
        table = rows.pivot_table(index="image_id", columns="method", values="score", aggfunc="mean", dropna=False) * sign
        images = len(table)
        drawn = rng_for(seed, "agreement of metrics", images).multinomial(images, np.full(images, 1 / images), size=resamples)
        means = weighted_means(table.to_numpy(), np.vstack([np.ones(images), drawn]))
        means = np.where(np.isclose(means, np.round(means, 12)), np.round(means, 12), means)
        found[str(model)] = pd.DataFrame(means, columns=table.columns)
    return found
