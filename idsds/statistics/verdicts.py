"""Verdicts on claims: what an interval says about a claim, in one vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

SUPPORTED, NOT_SUPPORTED, CONTRADICTED = VERDICTS = ("supported", "not supported", "contradicted")


def verdicts(low: pd.Series | np.ndarray | float, high: pd.Series | np.ndarray | float, threshold: float = 0.0) -> np.ndarray:
    """Judge claims that a quantity exceeds ``threshold`` by the quantity's intervals.

    Args:
        low, high: ends of the intervals, of any common shape.
        threshold: the value that the quantity exceeds according to the claim.

    Returns:
        ``supported`` if the whole interval lies above the threshold, ``contradicted`` if it lies below, else ``not supported``,
        also if an end is undefined (NaN).
    """
    low, high = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    return np.select([low > threshold, high < threshold], [SUPPORTED, CONTRADICTED], NOT_SUPPORTED)


def count_verdicts(table: pd.DataFrame, by: str | Sequence[str]) -> pd.DataFrame:
    """Count the ``verdict`` column of a table per group.

    Returns:
        One row per group, in the table's order: the columns of ``by``, ``comparisons``, and a column for each verdict.
    """
    keys = [by] if isinstance(by, str) else list(by)
    groups = table.groupby(keys, sort=False)["verdict"]
    counts = {verdict: groups.agg(lambda values, v=verdict: int((values == v).sum())) for verdict in VERDICTS}
    return pd.DataFrame({"comparisons": groups.size(), **counts}).reset_index()
