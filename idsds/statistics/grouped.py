"""Rank correlations over units that come in groups, such as models of an architecture on a data set, with intervals for few groups.

Units of a group are alike, so an interval must count groups, not units. A percentile bootstrap of few groups is too narrow. The jackknife
that leaves out one group at a time, with Student's t on Fisher's z scale, is not: ``tests/statistics/test_grouped.py`` simulates it for
6 and 15 groups. Groups are assumed to be independent; if they share effects (an architecture on several data sets, several
architectures on one), the interval may be a little too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from idsds.statistics.intervals import check_options, jackknife_ends, seed_interval

#: Fewer groups have no interval: for two, Student's t would say next to nothing.
FEWEST = 3
#: Coefficients that differ by less than this are equal up to rounding.
ALIKE = 1e-12


def spearman(values: np.ndarray, groups: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Return Spearman correlations of all columns within groups: values are ranked in each group, and the deviations of ranks pooled.

    With one group it is the ordinary coefficient; with groups of equal size and no ties, the mean of their coefficients.

    Args:
        values: (units, columns).
        groups: the group of each unit.

    Returns:
        (columns, columns); NaN if a column does not vary within any group, or has a NaN.
    """
    values, codes = np.asarray(values, float), np.unique(np.asarray(groups), return_inverse=True)[1]
    cross = sum((_cross(values[codes == code]) for code in np.unique(codes)), np.zeros((values.shape[1],) * 2))
    spread = np.sqrt(np.diagonal(cross))
    with np.errstate(divide="ignore", invalid="ignore"):
        return cross / np.outer(spread, spread)


def _cross(values: np.ndarray) -> np.ndarray:
    """Return the products of the deviations of the columns' ranks, (columns, columns)."""
    deviations = stats.rankdata(values, axis=0) - (len(values) + 1) / 2
    return deviations.T @ deviations


def partial(matrices: np.ndarray, first: int, second: int, given: int) -> np.ndarray:
    """Return the partial correlation of two columns given a third, from the correlations of the three.

    ``(r_12 - r_1g r_2g) / sqrt((1 - r_1g^2) (1 - r_2g^2))``, the correlation of the residuals of their ranks after a linear fit on the
    ranks of the third.

    Args:
        matrices: (..., columns, columns), from :func:`spearman`.
        first, second, given: indices of columns.

    Returns:
        (...); NaN if the third column determines one of the two.
    """
    r, one, two = matrices[..., first, second], matrices[..., first, given], matrices[..., second, given]
    left = (1 - one**2) * (1 - two**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(left > ALIKE, np.clip((r - one * two) / np.sqrt(np.maximum(left, 0)), -1, 1), np.nan)


def without_each(values: np.ndarray, groups: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Return :func:`spearman` within ``groups`` without each of the ``cells`` in turn, (cells, columns, columns)."""
    return np.stack([spearman(values[cells != cell], groups[cells != cell]) for cell in np.unique(cells)])


def jackknife_interval(point: float, left_out: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Return the ends of a correlation's interval over groups: leave-one-group-out jackknife, Student's t on Fisher's z scale.

    With z = artanh(r) and G groups, ``variance = (G - 1) / G * sum over groups of (z_(-g) - mean)^2``, and the ends are
    ``tanh(z -+ t_(G - 1) sqrt(variance))``, which stay in [-1, 1]. Tukey 1958; Fisher 1915; ``t`` as in Efron and Tibshirani 1993, 12.

    Args:
        point: the correlation over all groups.
        left_out: (G,), the correlations without each group in turn.

    Returns:
        Low and high; NaN for fewer than :data:`FEWEST` groups, if a correlation is undefined or -1 or 1, and if all of them are equal:
        a spread of 0 among a few groups does not mean certainty.
    """
    check_options(confidence)
    groups = len(left_out)
    with np.errstate(divide="ignore", invalid="ignore"):
        z, without = np.arctanh(point), np.arctanh(left_out)
    if groups < FEWEST or not np.isfinite([z, *without]).all() or np.ptp(without) < ALIKE:
        return np.nan, np.nan
    low, high = jackknife_ends(z, without, confidence)
    return float(np.tanh(low)), float(np.tanh(high))


def mean_of_groups(own: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return mean, low and high of one number per group (G,), with Student's t; undefined numbers are left out.

    The ends are NaN for fewer than :data:`FEWEST` groups, and if all numbers are equal.
    """
    check_options(confidence)
    own = own[np.isfinite(own)]
    if not len(own):
        return np.nan, np.nan, np.nan
    if len(own) < FEWEST or np.ptp(own) < ALIKE:
        return float(own.mean()), np.nan, np.nan
    return seed_interval(own, confidence)  # its t interval holds for any independent numbers
