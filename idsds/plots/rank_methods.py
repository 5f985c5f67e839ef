"""The ranking of attribution methods: an axis per model, a marker per method."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pandas as pd
from matplotlib.figure import Figure

from idsds.plots.parallel_axes import Join, parallel_axes


def rank_methods(
    table: pd.DataFrame,
    families: dict[str, str],
    *,
    n_patches: int = 16,
    score: str = "IDSDS",
    models: Sequence[str] | None = None,
    columns: int = 2,
    published: pd.DataFrame | None = None,
) -> Figure:
    """One horizontal axis per model with a marker per method, joined by lines from model to model.

    Args:
        table: from :func:`idsds.rank`: model, method, mean, low, high, count, nan, interval.
        families: family of each method, for its marker.
        n_patches: patches per image, which gives the band of a map that knows nothing.
        score: what the axis is called.
        models: order of the axes, top to bottom; None: as they appear.
        columns: width of the figure, in columns of a paper.
        published: from :func:`idsds.published.compare`, drawn below each axis in grey and hollow; None or empty: nothing.
    """
    models = list(models or dict.fromkeys(table["model"]))
    joins = []
    for method, rows in table[table["mean"].notna()].groupby("method", sort=False):
        with_it = [model for model in models if model in set(rows["model"])]
        joins += [Join(str(method), first, second) for first, second in pairwise(with_it)]
    return parallel_axes(table, families, models, joins, n_patches=n_patches, score=score, columns=columns, published=published)
