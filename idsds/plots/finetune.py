"""Accuracies before and after in-domain fine-tuning."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from idsds.plots.style import COLUMNS, STYLE


def finetune(table: pd.DataFrame, *, panels: int = 6, columns: int = 2) -> Figure:
    """Draw one panel per model: accuracy before and after in-domain fine-tuning, on intact images and with one patch deleted.

    Args:
        table: from :func:`idsds.studies.finetune.finetune`: model, seed, stage, images, accuracy, low, high, count.
        panels: maximal number of panels in a row.
        columns: width of the figure, in columns of a paper.
    """
    models = list(dict.fromkeys(table["model"]))
    across, down = min(panels, len(models)), -(-len(models) // panels)
    looks = {"intact": ("o", "#0072B2", "-", -0.03), "one patch deleted": ("s", "#D55E00", "--", 0.03)}
    with mpl.rc_context(STYLE):
        width = COLUMNS[columns] if across > 2 else COLUMNS[1]
        figure, grid = plt.subplots(
            down, across, figsize=(width, 0.6 + 1.9 * down), sharex=True, sharey=True, squeeze=False, layout="constrained"
        )
        for axes in grid.flat[len(models) :]:
            axes.set_visible(False)
        for axes, model in zip(grid.flat, models, strict=False):
            for kind, (marker, colour, line, shift) in looks.items():
                for _, rows in table[(table["model"] == model) & (table["images"] == kind)].groupby("seed"):
                    rows = rows.set_index("stage").loc[["before", "after"]]
                    x, errors = np.arange(2) + shift, [rows["accuracy"] - rows["low"], rows["high"] - rows["accuracy"]]
                    face = colour if kind == "intact" else "white"
                    axes.errorbar(
                        x, rows["accuracy"], errors, color=colour, linestyle=line, marker=marker, markersize=5, markerfacecolor=face
                    )
            axes.set_title(model, fontsize=8)
            axes.set_xticks([0, 1], ["before", "after"])
            axes.set_xlim(-0.3, 1.3)
            axes.grid(axis="y", color="#DDDDDD", linewidth=0.5)
        for row in grid:
            row[0].set_ylabel("accuracy, higher is better →")
        handles = [
            Line2D([], [], color=c, linestyle=line, marker=m, markersize=5, markerfacecolor=c if kind == "intact" else "white", label=label)
            for kind, (m, c, line, _) in looks.items()
            for label in [f"{kind} images" if kind == "intact" else kind]
        ]
        n = int(table["count"].max())
        figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=2,
            frameon=False,
            fontsize=7,
            title=f"n = {n} test images, 95 % interval over images",
            title_fontsize=7,
        )
    return figure
