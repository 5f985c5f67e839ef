"""Intervals over training seeds: how far a mean moves when everything is trained again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from idsds.statistics.resampling import check_options


def seed_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """The mean over training seeds with Student's t interval: mean, low, high.

    A bootstrap of two to five seeds is far too narrow; the t interval is exact for normal values. It holds for the images at hand.

    Args:
        values: (n,), one number per seed.
        confidence: such as 0.95.

    Returns:
        The ends are NaN for a single seed, and all three where a value is NaN.

    Raises:
        ValueError: for no values, or a confidence that makes no sense.
    """
    check_options(confidence)
    values = np.asarray(values, float)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values must be (n,), one number per seed, not of shape {values.shape}")
    mean = values.mean()
    if len(values) == 1:
        return float(mean), float("nan"), float("nan")
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(mean), float(mean - half), float(mean + half)


def covers_seeds(seeds: int, confidence: float = 0.95) -> str:
    """What :func:`seed_interval` covers, in words."""
    return "one training seed: no interval" if seeds == 1 else f"{100 * confidence:g} % t interval over {seeds} training seeds"
