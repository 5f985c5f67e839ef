"""The ranking of attribution methods, an axis per model and a marker per method; and the drops that it is based on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from idsds.plots.parallel_axes import joins_along, parallel_axes
from idsds.plots.style import COLUMNS, panel_grid, styled


def rank_methods(
    table: pd.DataFrame,
    families: dict[str, str],
    *,
    n_patches: int = 16,
    score: str = "IDSDS",
    models: Sequence[str] | None = None,
    columns: int = 2,
    published: pd.DataFrame | None = None,
    where: str = "",
) -> Figure:
    """Draw one horizontal axis per model with a marker per method, connected by lines from model to model.

    Args:
        table: from :func:`idsds.rank`: model, method, mean, low, high, count, nan, interval.
        models: order of the axes, top to bottom; None: as they appear.
        published: from :func:`idsds.published.compare`, drawn below each axis, hollow and grey; None or empty for nothing.
    """
    models = list(models or dict.fromkeys(table["model"]))
    options = {"n_patches": n_patches, "score": score, "columns": columns, "published": published, "where": where}
    return parallel_axes(table, families, models, joins_along(table, models), **options)


@styled
def deletion_drops(drops: pd.DataFrame, *, quantity: str = "logit", columns: int = 2) -> Figure:
    """Draw the distribution of drops, a curve per model: in units of the output, and as a fraction of each image's largest drop.

    Args:
        drops: one row per model, image and patch: model, drop (in units of the quantity), share (of the largest, in [-1, 1]).
        quantity: the quantity that drops when a patch is deleted.
    """
    models = list(dict.fromkeys(drops["model"]))
    figure, (both,) = panel_grid(1, 2, COLUMNS[columns], 0.42 * COLUMNS[columns], sharey=True)
    labels = (f"drop of the target's {quantity}", "drop as a fraction of the image's largest (-1 to 1)")
    for axes, name, label in zip(both, ("drop", "share"), labels, strict=True):
        for model, colour, dash in zip(models, sns.color_palette("colorblind", len(models)), cycle(["-", "--", "-.", ":"]), strict=False):
            sns.ecdfplot(drops[drops["model"] == model], x=name, ax=axes, color=colour, linestyle=dash, label=model)
        axes.set_xlabel(label)
        axes.axvline(0, color="#888888", linewidth=0.6, zorder=0)
    both[0].set_ylabel("fraction of patches with at most this drop")
    both[1].legend(loc="upper left", frameon=False)
    return figure
