"""Which metrics say the same: Kendall's tau between the rankings of methods by every pair of metrics, on trained nets."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from idsds.statistics.intervals import percentile_ends, rng_for


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
    signs = {name: _signs(frame, resamples, seed) for name, frame in records.items()}
    names, rows = list(records), []
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            taus, methods = [], 0
            for model in signs[first]:
                if model in signs[second]:
                    (known, one), (others, other) = signs[first][model], signs[second][model]
                    shared = [method for method in known if method in others]
                    pairs = [
                        np.ix_(range(len(each)), *[[of.index(method) for method in shared]] * 2)
                        for each, of in ((one, known), (other, others))
                    ]
                    taus.append(tau_b(one[pairs[0]], other[pairs[1]]))
                    methods = max(methods, len(shared))
            defined = np.array([each for each in taus if np.isfinite(each[0])])
            tau = low = high = np.nan
            if len(defined):
                tau, *drawn = np.nanmean(defined, axis=0)
                low, high = (end.item() for end in percentile_ends(np.array(drawn)[np.isfinite(drawn), None], 0.95))
            rows.append((first, second, tau, low, high, len(defined), methods))
    return pd.DataFrame(rows, columns=["first", "second", "tau", "low", "high", "models", "methods"])


def tau_b(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Kendall's tau-b from the signs of all differences, (R, M, M) each, as (R,); NaN where either has only ties."""
    with np.errstate(invalid="ignore"):
        return np.nansum(first * second, axis=(1, 2)) / np.sqrt(np.nansum(first**2, axis=(1, 2)) * np.nansum(second**2, axis=(1, 2)))


def _signs(records: pd.DataFrame, resamples: int, seed: int) -> dict[str, tuple[list[str], np.ndarray]]:
    """Return by model the methods, and the signs of the differences of their means, (1 + resamples, M, M), those of all images first."""
    sign = -1 if (records["direction"] == "lower is better").any() else 1
    used = records[records["family"] != "control"]
    found = {}
    for model, rows in used.groupby("model", sort=False):
        table = rows.pivot_table(index="image_id", columns="method", values="score", aggfunc="mean", dropna=False) * sign
        drawn = rng_for(seed, "agreement of metrics", len(table)).multinomial(
            len(table), np.full(len(table), 1 / len(table)), size=resamples
        )
        weights = np.vstack([np.ones(len(table)), drawn])  # (1 + R, images)
        values = table.to_numpy()
        present = np.isfinite(values)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = weights @ np.where(present, values, 0) / (weights @ present)  # (1 + R, methods)
        means = np.where(np.isclose(means, np.round(means, 12)), np.round(means, 12), means)
        found[str(model)] = [str(name) for name in table.columns], np.sign(means[:, :, None] - means[:, None, :])
    return found
