"""Accuracies before and after in-domain fine-tuning."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from idsds.plots.style import COLUMNS, add_legend, panel_grid, styled

ACROSS = 6  # panels in a row
#: The lines of intact images and of the same ones with one patch deleted.
KINDS = {
    "intact": {"marker": "o", "color": "#0072B2", "linestyle": "-"},
    "one patch deleted": {"marker": "s", "color": "#D55E00", "linestyle": "--", "markerfacecolor": "white"},
}


@styled
def finetune(table: pd.DataFrame, *, columns: int = 2) -> Figure:
    """Draw one panel per model: accuracy before and after in-domain fine-tuning, on intact images and with one patch deleted.

    Args:
        table: model, seed, stage (``before``, ``after``), images, accuracy, low, high, count, ``top5``, which is written above its
            panel (intact, one patch deleted), and ``groups``, how many groups of images the intervals are over, where there are some.
    """
    models = list(dict.fromkeys(table["model"]))
    across, down = min(ACROSS, len(models)), -(-len(models) // ACROSS)
    width = COLUMNS[columns] if across > 2 else COLUMNS[1]
    figure, grid = panel_grid(down, across, width, 0.6 + 1.9 * down, sharex=True, sharey=True)
    for axes in grid.flat[len(models) :]:
        axes.set_visible(False)
    for axes, model in zip(grid.flat, models, strict=False):
        draw_accuracies(axes, table[table["model"] == model])
        axes.set_title(f"{model}\n{top5_said(table[table['model'] == model])}".strip(), fontsize=7)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.5)
    for row in grid:
        row[0].set_ylabel("accuracy, higher is better →")
    title = f"n = {int(table['count'].max())} test images, 95 % interval over "
    title += f"{int(table['groups'].max())} groups of them" if "groups" in table else "images"
    add_legend(figure, kind_handles(), 2, title=title)
    return figure


def top5_said(table: pd.DataFrame) -> str:
    """State one model's top-5 accuracy after fine-tuning, on intact images and with one patch deleted; empty if it is not in the table."""
    after = table[table["stage"] == "after"]
    near = after.groupby("images")["top5"].mean() if "top5" in after else {}
    said = ", ".join(f"{near[kind]:.3f}" for kind in KINDS if kind in near)
    return f"top-5 after: {said}" if said else ""


def draw_accuracies(axes: Axes, table: pd.DataFrame, scale: float = 1.0, size: float = 5) -> None:
    """Draw the accuracies of one model, times ``scale``, before and after in-domain fine-tuning: a line per kind of images and seed."""
    for shift, (kind, look) in zip((-0.04, 0.04), KINDS.items(), strict=True):
        for _, rows in table[table["images"] == kind].groupby("seed"):
            rows = scale * rows.set_index("stage").loc[["before", "after"], ["accuracy", "low", "high"]]
            errors = [rows["accuracy"] - rows["low"], rows["high"] - rows["accuracy"]]
            axes.errorbar(np.arange(2) + shift, rows["accuracy"], errors, markersize=size, **look)
    axes.set_xticks([0, 1], ["before", "after"])
    axes.set_xlim(-0.35, 1.35)


def kind_handles(size: float = 5) -> list[Line2D]:
    """Return the legend's entries: intact images, and those with one patch deleted."""
    labels = ("intact images", "one patch deleted")
    return [Line2D([], [], label=label, markersize=size, **look) for label, look in zip(labels, KINDS.values(), strict=True)]
