"""Sanity checks: how alike the maps stay when the model's layers, or its labels, are randomised."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from idsds.plots.lines import line_handles, line_looks
from idsds.plots.style import COLUMNS, STYLE

CHECKS = {
    "cascading": ("cascading", "layers randomised,\n% from the output down"),
    "independent": ("independent", "group of layers randomised\nalone, its end in %"),
    "labels": ("permuted labels", ""),
}
SIMILARITIES = {"spearman": "Spearman (-1 to 1)", "absolute": "Spearman of\nabsolute values", "ssim": "SSIM (-1 to 1)"}


def sanity(table: pd.DataFrame, model: str | None = None, *, similarities: Sequence[str] | None = None, columns: int = 2) -> Figure:
    """A row per similarity, a panel per check, a line per method; of the labels' check a point per method.

    Args:
        table: from :func:`idsds.randomisation.similarity_table`: model, method, family, check, depth, similarity, mean, low, high, count.
        model: which one; None: the first.
        similarities: which of ``spearman``, ``absolute``, ``ssim``; None: all.
        columns: width of the figure, in columns of a paper.
    """
    model = table["model"].iloc[0] if model is None else model
    table = table[table["model"] == model]
    rows = list(similarities or [name for name in SIMILARITIES if name in set(table["similarity"])])
    checks = [name for name in CHECKS if name in set(table["check"])]
    looks = line_looks(dict(zip(table["method"], table["family"], strict=True)))
    with mpl.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(rows),
            len(checks),
            figsize=(COLUMNS[columns], 1.3 + 1.55 * len(rows)),
            sharex="col",
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for panels, similarity in zip(grid, rows, strict=True):
            for axes, check in zip(panels, checks, strict=True):
                part = table[(table["similarity"] == similarity) & (table["check"] == check)]
                axes.axhline(0, color="#888888", linewidth=0.6, zorder=0)
                for number, (method, look) in enumerate(looks.items()):
                    line = part[part["method"] == method].sort_values("depth")
                    # The intact model: every map is like itself.
                    start = [] if check != "cascading" else [0.0]
                    x = [number] if check == "labels" else [*start, *(100 * line["depth"])]
                    axes.plot(x, [*np.ones(len(start)), *line["mean"]], **look)
                    axes.vlines(x[len(start) :], line["low"], line["high"], color=look["color"], linewidth=1.0)
                axes.grid(axis="y", color="#EEEEEE", linewidth=0.5)
                axes.set_ylim(min(-0.1, float(np.nanmin([0, *table["low"].dropna()])) - 0.05), 1.05)
            panels[0].set_ylabel(f"{SIMILARITIES[similarity]}\nlower is better")
        for axes, check in zip(grid[0], checks, strict=True):
            learned = table.loc[table["check"] == check, "train_accuracy"].mean()
            axes.set_title(CHECKS[check][0] + (f" ({learned:.0%} learned)" if check == "labels" else ""), fontsize=8)
        for axes, check in zip(grid[-1], checks, strict=True):
            if check == "labels":
                axes.set_xticks(range(len(looks)), list(looks), rotation=45, ha="right", rotation_mode="anchor", fontsize=7)
                axes.set_xlim(-0.6, len(looks) - 0.4)
            else:
                axes.set_xlabel(CHECKS[check][1])
        figure.legend(
            handles=line_handles(looks),
            loc="outside upper center",
            ncols=min(len(looks), 6),
            frameon=False,
            fontsize=7,
            handlelength=3.4,
            title=f"{model}, n = {int(table['count'].max())} images; bars: {table['interval'].iloc[0]}",
            title_fontsize=7,
        )
    return figure
