"""Robustness to augmentation: a panel per method, an axis entry per rotation and filter, the study's values in grey."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from idsds.plots.style import COLUMNS, add_legend, look_of, styled

# measure: (label, offset of its marks from the middle, its mark). A panel has one method and one colour: the shape shows the measure.
MEASURES: dict[str, tuple[str, float, dict[str, Any]]] = {
    "ssim": ("SSIM", -0.26, {"marker": "o", "markersize": 4}),
    "spearman": ("Spearman correlation", 0.0, {"marker": "D", "markersize": 3.8, "markerfacecolor": "white", "markeredgewidth": 0.9}),
    "top_intersection": ("top pixels kept", 0.26, {"marker": "_", "markersize": 5.5, "markeredgewidth": 1.5}),
}
STUDY: dict[str, Any] = {"marker": "x", "color": "#888888", "linestyle": "", "markersize": 4.5, "markeredgewidth": 1.2}
ACROSS = 3


def augmentation_robustness(table: pd.DataFrame, published: pd.DataFrame | None = None, columns: int = 2) -> list[Figure]:
    """Draw one page per model, with one panel per method.

    Args:
        table: the means of the study ``augmentation_robustness``. An augmentation that changes no image is not drawn, as a note says.
        published: method, augmentation, ssim: the study's values (:func:`idsds.published.xai_correlation_ssim`); None: none are drawn.
    """
    return [_page(rows, str(model), published, columns) for model, rows in table.groupby("model", sort=False)]


@styled
def _page(table: pd.DataFrame, model: str, published: pd.DataFrame | None, columns: int) -> Figure:
    methods = list(dict.fromkeys(table["method"]))
    idle = unchanging(table)
    names = [name for name in dict.fromkeys(table["augmentation"]) if not name.startswith("all ") and name not in idle]
    down = -(-len(methods) // ACROSS)
    width, panel, head, foot = COLUMNS[columns], 1.25, 0.76, 1.68  # inches
    height = head + foot + panel * down
    figure, grid = plt.subplots(down, ACROSS, sharex=True, sharey=True, squeeze=False, figsize=(width, height))
    figure.subplots_adjust(left=0.075, right=0.99, top=1 - head / height, bottom=foot / height, wspace=0.08, hspace=0.28)
    low = min(0.0, float(table["low"].min()))
    for axes, method in zip(grid.flat, methods, strict=False):
        rows = table[table["method"] == method]
        _panel(axes, rows, names, published)
        axes.set_title(method, fontsize=8, pad=2)
        axes.set_ylim(low - 0.05, 1.05)
    for axes in grid.flat[len(methods) :]:
        axes.set_visible(False)
    counts = table.groupby("augmentation").first().loc[names]
    labels = [f"{plain(row.Index)} ({row.stayed} of {row.changed})" for row in counts.itertuples()]
    for axes in grid.flat[max(0, len(methods) - ACROSS) : len(methods)]:
        axes.tick_params(labelbottom=True)
        axes.set_xticks(range(len(names)), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=6.5)
    middle = (foot + panel * down / 2) / height
    figure.text(0.006, middle, "similarity of maps (1: equal), higher is better →", rotation=90, va="center", ha="left", fontsize=7.5)
    title = f"{model}: maps before and after an augmentation that changes the image and keeps its target's probability"
    figure.text(0.5, 1 - 0.10 / height, title, ha="center", va="top", fontsize=8)
    figure.text(0.01, 0.04 / height, _note(idle), ha="left", va="bottom", fontsize=6.5)
    drawn = published is not None and bool(set(published["method"]) & set(methods))
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 1 - 0.22 / height)}
    looks = {"fontsize": 6.5, "columnspacing": 1.2, "handlelength": 1.4, "handletextpad": 0.4}
    add_legend(figure, _legend(table["interval"].iloc[0], drawn), 3, **place, **looks)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, names: list[str], published: pd.DataFrame | None) -> None:
    colour = look_of(rows["method"].iloc[0], rows["family"].iloc[0]).ink
    for measure, (_, shift, mark) in MEASURES.items():
        found = rows[rows["measure"] == measure].set_index("augmentation").reindex(names)
        places = [place + shift for place in range(len(names))]
        axes.vlines(places, found["low"], found["high"], color=colour, linewidth=1.0)
        axes.plot(places, found["mean"], color=colour, linestyle="", **mark)
    if published is not None:
        theirs = published[published["method"] == rows["method"].iloc[0]].set_index("augmentation")["ssim"].reindex(names)
        axes.plot(range(len(names)), theirs, zorder=3, **STUDY)
    axes.axhline(0, color="#BBBBBB", linewidth=0.6, zorder=0)
    axes.set_xlim(-0.6, len(names) - 0.4)


def _note(idle: list[str]) -> str:
    """Return a note on what may be compared and what is not drawn."""
    left_out = f" Not drawn: {', '.join(map(plain, idle))}, which changes no image." if idle else ""
    return (
        f"In brackets: images whose target probability is kept, of those that the augmentation changes.{left_out}\n"
        "Each column averages over its own images: compare methods within a column, not columns with each other."
    )


def _legend(interval: str, published: bool) -> list[Line2D]:
    handles = [Line2D([], [], label=label, color="#444444", linestyle="", **mark) for label, _, mark in MEASURES.values()]
    handles.append(Line2D([], [], color="#444444", linewidth=1.0, label=interval))
    return [*handles, Line2D([], [], label="SSIM printed by the study (G'MIC's filters)", **STUDY)] if published else handles


def unchanging(table: pd.DataFrame) -> list[str]:
    """Return the augmentations that change no image, such as more colour for grey images."""
    return [name for name in dict.fromkeys(table["augmentation"]) if not table.loc[table["augmentation"] == name, "changed"].any()]


def plain(name: str) -> str:
    """Return an augmentation's name for the axis."""
    return name.replace("_", " ").replace(" degrees", "°")
