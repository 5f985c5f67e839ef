"""ROAR and KAR: accuracy after retraining against the share of the pixels that were replaced."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from idsds.plots.lines import line_handles, line_looks
from idsds.plots.style import COLUMNS, STYLE

TITLES = {
    "remove": ("ROAR: the most important removed", "lower is better"),
    "keep": ("KAR: the least important removed", "higher is better"),
}


def roar(table: pd.DataFrame, *, columns: int = 2) -> Figure:
    """A row of two panels per model, ROAR and KAR, a line per method.

    Args:
        table: from :func:`idsds.statistics.retraining_curves`: model, method, family, kind, share, mean, low, high, interval.
        columns: width of the figure, in columns of a paper.
    """
    models, kinds = list(dict.fromkeys(table["model"])), [kind for kind in TITLES if kind in set(table["kind"])]
    looks = line_looks(dict(zip(table["method"], table["family"], strict=True)))
    with mpl.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(models),
            len(kinds),
            figsize=(COLUMNS[columns], 0.75 + 2.3 * len(models)),
            sharex=True,
            sharey="row",
            squeeze=False,
            layout="constrained",
        )
        for row, model in zip(grid, models, strict=True):
            for axes, kind in zip(row, kinds, strict=True):
                part = table[(table["model"] == model) & (table["kind"] == kind)]
                # Intervals of neighbouring methods would hide each other: they stand side by side, the lines do not move.
                shifts = np.linspace(-0.8, 0.8, len(looks)) if len(looks) > 1 else [0.0]
                for (method, look), shift in zip(looks.items(), shifts, strict=True):
                    line = part[part["method"] == method].sort_values("share")
                    x = 100 * line["share"]
                    axes.plot(x, line["mean"], **look)
                    axes.vlines(x + shift, line["low"].clip(0, 1), line["high"].clip(0, 1), color=look["color"], linewidth=0.8, alpha=0.6)
                title, better = TITLES[kind]
                axes.set_title(title if len(models) == 1 else f"{model}: {title}", fontsize=8)
                axes.text(0.02, 0.03, better, transform=axes.transAxes, fontsize=7, color="#444444", style="italic")
                axes.grid(axis="y", color="#DDDDDD", linewidth=0.5)
                axes.set_ylim(0, 1.02)
                axes.set_xticks(sorted(100 * table["share"].unique()))
            row[0].set_ylabel(f"{model}\ntest accuracy after retraining (0 to 1)")
        for axes in grid[-1]:
            axes.set_xlabel("pixels replaced in every image, %")
        figure.legend(
            handles=line_handles(looks),
            loc="outside upper center",
            ncols=min(len(looks), 6),
            frameon=False,
            fontsize=7,
            handlelength=3.4,
            title=f"n = {int(table['count'].max())} test images; bars: {table['interval'].iloc[0]}",
            title_fontsize=7,
        )
    return figure
