"""Rank correlations over units that come in groups, such as models of an architecture on a data set, with intervals for few groups.

Units of a group share what they are made of, so that the groups and not the units are what an interval has to count. A percentile
bootstrap of few groups is too narrow. The jackknife that leaves out one group at a time, with Student's t on Fisher's z scale, is not:
``tests/statistics/test_grouped.py`` simulates it for 6 and 15 groups. Groups are taken to be independent; where they share effects (an
architecture on several data sets, several architectures on one) it may be a little too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from idsds.statistics.intervals import check_options, seed_interval

#: Fewer groups have no interval: of two, Student's t would say next to nothing.
FEWEST = 3
#: Groups whose coefficients differ by less agree but for rounding.
ALIKE = 1e-12


def spearman(values: np.ndarray, groups: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Spearman correlations of all columns within groups: the values are ranked in each group, and the ranks' deviations pooled.

    With one group it is the ordinary coefficient; with groups of equal size and no ties the mean of theirs.

    Args:
        values: (units, columns).
        groups: of each unit.

    Returns:
        (columns, columns); NaN where a column does not vary within any group, or has a NaN.
    """
    values, codes = np.asarray(values, float), np.unique(np.asarray(groups), return_inverse=True)[1]
    cross = sum((_cross(values[codes == code]) for code in np.unique(codes)), np.zeros((values.shape[1],) * 2))
    spread = np.sqrt(np.diagonal(cross))
    with np.errstate(divide="ignore", invalid="ignore"):
        return cross / np.outer(spread, spread)


def _cross(values: np.ndarray) -> np.ndarray:
    """Products of the deviations of the columns' ranks, (columns, columns)."""
    deviations = stats.rankdata(values, axis=0) - (len(values) + 1) / 2
    return deviations.T @ deviations


def partial(matrices: np.ndarray, first: int, second: int, given: int) -> np.ndarray:
    """The partial correlation of two columns given a third, from the correlations of the three.

    ``(r_12 - r_1g r_2g) / sqrt((1 - r_1g^2) (1 - r_2g^2))``, which is the correlation of what a straight line through the ranks of the
    third leaves of the ranks of either.

    Args:
        matrices: (..., columns, columns), from :func:`spearman`.
        first, second, given: numbers of columns.

    Returns:
        (...); NaN where the third column says all of one of the two.
    """
    r, one, two = matrices[..., first, second], matrices[..., first, given], matrices[..., second, given]
    left = (1 - one**2) * (1 - two**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(left > ALIKE, np.clip((r - one * two) / np.sqrt(np.maximum(left, 0)), -1, 1), np.nan)


def without_each(values: np.ndarray, groups: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """:func:`spearman` within ``groups`` without each of the ``cells`` in turn, (cells, columns, columns)."""
    return np.stack([spearman(values[cells != cell], groups[cells != cell]) for cell in np.unique(cells)])


def jackknife_interval(point: float, left_out: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Ends of a correlation's interval over groups: leave-one-group-out jackknife, Student's t on Fisher's z scale.

    With z = artanh(r) and G groups, ``variance = (G - 1) / G * sum over groups of (z_(-g) - mean)^2``, and the ends are
    ``tanh(z -+ t_(G - 1) sqrt(variance))``, which stay in [-1, 1]. Tukey 1958; Fisher 1915; ``t`` as in Efron and Tibshirani 1993, 12.

    Args:
        point: the correlation of all groups.
        left_out: (G,), without each group in turn.
        confidence: such as 0.95.

    Returns:
        Low and high; NaN for fewer than :data:`FEWEST` groups, where a correlation is undefined or of size 1, and where all of them are the
        same: a spread of 0 among a few groups is no certainty.
    """
    check_options(confidence)
    groups = len(left_out)
    with np.errstate(divide="ignore", invalid="ignore"):
        z, without = np.arctanh(point), np.arctanh(left_out)
    if groups < FEWEST or not np.isfinite([z, *without]).all() or np.ptp(without) < ALIKE:
        return np.nan, np.nan
    half = stats.t.ppf((1 + confidence) / 2, groups - 1) * np.sqrt((groups - 1) * without.var())
    return float(np.tanh(z - half)), float(np.tanh(z + half))


def mean_of_groups(own: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean, low and high of the groups' own numbers (G,), with Student's t; those that are undefined are left out.

    The ends are NaN for fewer than :data:`FEWEST` groups, and where all of them are the same.
    """
    check_options(confidence)
    own = own[np.isfinite(own)]
    if not len(own):
        return np.nan, np.nan, np.nan
    if len(own) < FEWEST or np.ptp(own) < ALIKE:
        return float(own.mean()), np.nan, np.nan
    return seed_interval(own, confidence)  # its t interval is over any independent numbers
