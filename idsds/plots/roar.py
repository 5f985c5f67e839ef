"""ROAR and KAR: accuracy after retraining against the fraction of replaced pixels, and accuracy from their positions alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from idsds.plots.lines import line_handles, line_looks
from idsds.plots.style import COLUMNS, add_legend, look_of, panel_grid, styled

TITLES = {
    "remove": ("ROAR: the most important removed", "lower is better"),
    "keep": ("KAR: the least important removed", "higher is better"),
    "mask": ("masks alone: positions, no image", "above chance: positions reveal the class"),
}
# If nothing is replaced, all methods share one net, and one mark that belongs to no method.
UNTOUCHED = {"marker": "o", "color": "#222222", "markerfacecolor": "white", "markersize": 5, "linestyle": "", "zorder": 5}
GROUND = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.5}
# Lines across a whole panel: the explained net, and a net without information.
LEVELS = {"explained_accuracy": ("explained net", "-"), "chance": ("chance", (0, (1, 2)))}


@styled
def roar(table: pd.DataFrame, *, columns: int = 2) -> Figure:
    """Draw a row of panels per model, for ROAR, KAR and masks alone, with a line per method.

    Coinciding lines stay visible: those listed first are wider and below, and marks and intervals are drawn side by side.

    Args:
        table: model, method, family, kind, share, mean, low, high, interval, count, ``top5`` (its range stands in the titles);
            explained_accuracy and chance are drawn if present.
    """
    models, kinds = list(dict.fromkeys(table["model"])), [kind for kind in TITLES if kind in set(table["kind"])]
    looks = _looks(dict(zip(table["method"], table["family"], strict=True)))
    height = 0.75 + 2.3 * len(models)
    figure, grid = panel_grid(len(models), len(kinds), COLUMNS[columns], height, sharex=True, sharey="row")
    for row, model in zip(grid, models, strict=True):
        for axes, kind in zip(row, kinds, strict=True):
            part = table[(table["model"] == model) & (table["kind"] == kind)]
            _lines(axes, part, looks)
            _levels(axes, part, kind)
            title, better = TITLES[kind]
            near = f"\ntop-5: {part['top5'].min():.3f} to {part['top5'].max():.3f}" if len(part) else ""
            axes.set_title((title if len(models) == 1 else f"{model}:\n{title}") + near, fontsize=8)
            axes.text(0.02, 0.02, better, transform=axes.transAxes, fontsize=7, color="#444444", style="italic")
            axes.grid(axis="y", color="#DDDDDD", linewidth=0.5)
            axes.set_ylim(0, 1.04)
            axes.set_xticks(sorted(100 * table["share"].unique()))
        row[0].set_ylabel(f"{model}\ntest accuracy after retraining (0 to 1)")
    for axes in grid[-1]:
        axes.set_xlabel("pixels replaced in every image, %")
    handles, covers = line_handles(looks), table["interval"].iloc[0]
    if (table["share"] == 0).any():
        handles.append(Line2D([], [], label="nothing replaced: one net for all", **UNTOUCHED))
    title = f"n = {int(table['count'].max())} test images; {covers if table['low'].isna().all() else f'bars: {covers}'}"
    add_legend(figure, handles, min(len(handles), 6), handlelength=3.4, title=title)
    return figure


def _looks(families: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the styles of lines, which differ in grey by dashes and lightness; a line covered by others is wider than they are."""
    looks = line_looks(families)
    widths = np.linspace(2.4, 1.0, len(looks))
    for width, (method, look) in zip(widths, looks.items(), strict=True):
        look |= {"color": look_of(method, families[method]).ink, "linewidth": float(width)}
    return looks


def _lines(axes: Axes, part: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> None:
    """Draw a line per method, all starting at the one mark for unmodified images.

    Marks and intervals would hide each other, so they are drawn side by side around their position.
    """
    shifts = np.linspace(-2, 2, len(looks)) if len(looks) > 1 else [0.0]
    for (method, look), shift in zip(looks.items(), shifts, strict=True):
        line = part[part["method"] == method].sort_values("share")
        replaced = (line["share"] > 0).to_numpy()
        x = 100 * line["share"].to_numpy() + np.where(replaced, shift, 0)
        axes.plot(x, line["mean"], markevery=list(np.flatnonzero(replaced)), **look)
        axes.vlines(x[replaced], line["low"][replaced], line["high"][replaced], color=look["color"], linewidth=0.9)
    untouched = part[part["share"] == 0].head(1)
    if len(untouched):
        axes.vlines(100 * untouched["share"], untouched["low"], untouched["high"], color=UNTOUCHED["color"], linewidth=0.9)
        axes.plot(100 * untouched["share"], untouched["mean"], **UNTOUCHED)


def _levels(axes: Axes, part: pd.DataFrame, kind: str) -> None:
    """Draw thin labelled lines: the explained net's accuracy and, beside masks alone, the accuracy without information."""
    for column, (name, dashes) in LEVELS.items():
        if column in part and (column != "chance" or kind == "mask"):
            value = part[column].iloc[0]
            axes.axhline(value, color="#222222", linewidth=0.7, linestyle=dashes, zorder=1)
            # The label of chance is between two fractions, clear of Random's marks.
            x, lift, side = (0.99, 0.008, "right") if column == "explained_accuracy" else (0.35, 0.025, "center")
            place = {"transform": axes.get_yaxis_transform(), "ha": side, "va": "bottom"}
            axes.text(x, value + lift, f"{name} {value:.3f}", fontsize=6, bbox=GROUND, **place)
