"""Robustness to augmentation: a panel per method, an axis entry per rotation and filter, the study's values in grey."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from idsds.plots.style import COLUMNS, STYLE, look_of

# measure: (label, how far its marks are moved from the middle, whether they are filled)
MEASURES = {
    "ssim": ("SSIM", -0.18, True),
    "spearman": ("Spearman correlation", 0.0, False),
    "top_intersection": ("share of top pixels kept", 0.18, None),
}
ACROSS = 3


def augmentation_robustness(table: pd.DataFrame, published: pd.DataFrame | None = None, columns: int = 2) -> list[Figure]:
    """One page per model, one panel per method.

    Args:
        table: from :func:`idsds.augmentation.measure`.
        published: method, augmentation, ssim: the study's values (:func:`idsds.published.xai_correlation_ssim`); None: none are drawn.
        columns: width of the figure, in columns of a paper.
    """
    return [_page(rows, str(model), published, columns) for model, rows in table.groupby("model", sort=False)]


def _page(table: pd.DataFrame, model: str, published: pd.DataFrame | None, columns: int) -> Figure:
    methods = list(dict.fromkeys(table["method"]))
    names = list(dict.fromkeys(name for name in table["augmentation"] if not name.startswith("all ")))
    down = -(-len(methods) // ACROSS)
    width, panel, head, foot = COLUMNS[columns], 1.25, 0.62, 1.15  # inches
    height = head + foot + panel * down
    with mpl.rc_context(STYLE):
        figure, grid = plt.subplots(down, ACROSS, sharex=True, sharey=True, squeeze=False, figsize=(width, height))
        figure.subplots_adjust(left=0.075, right=0.99, top=1 - head / height, bottom=foot / height, wspace=0.08, hspace=0.28)
        low = min(0.0, float(table["low"].min()))
        for axes, method in zip(grid.flat, methods, strict=False):
            rows = table[table["method"] == method]
            _panel(axes, rows, names, published)
            axes.set_title(method, fontsize=8, pad=2)
            axes.set_ylim(low - 0.05, 1.05)
        for number in range(len(methods), down * ACROSS):
            grid.flat[number].set_visible(False)
        for number in range(max(0, len(methods) - ACROSS), len(methods)):
            axes = grid.flat[number]
            axes.tick_params(labelbottom=True)
            shares = [f"{table.loc[table['augmentation'] == name, 'counted'].iloc[0]:.0%}" for name in names]
            labels = [f"{_plain(name)} ({share})" for name, share in zip(names, shares, strict=True)]
            axes.set_xticks(range(len(names)), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=6)
        middle = (foot + panel * down / 2) / height
        figure.text(0.006, middle, "likeness of maps (1: the same), higher is better →", rotation=90, va="center", ha="left", fontsize=7.5)
        title = f"{model}: maps before and after an augmentation (in brackets: images whose target's probability stays)"
        figure.text(0.5, 1 - 0.10 / height, title, ha="center", va="top", fontsize=8)
        drawn = published is not None and bool(set(published["method"]) & set(methods))
        figure.legend(
            handles=_legend(table["interval"].iloc[0], drawn),
            loc="upper center",
            bbox_to_anchor=(0.5, 1 - 0.22 / height),
            ncols=5,
            frameon=False,
            fontsize=6.5,
            columnspacing=1.0,
            handletextpad=0.3,
        )
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, names: list[str], published: pd.DataFrame | None) -> None:
    look = look_of(rows["method"].iloc[0], rows["family"].iloc[0])
    marker, colour = look.marker, look.ink
    for measure, (_, shift, filled) in MEASURES.items():
        found = rows[rows["measure"] == measure].set_index("augmentation").reindex(names)
        places = [place + shift for place in range(len(names))]
        axes.vlines(places, found["low"], found["high"], color=colour, linewidth=1.0)
        if filled is None:
            axes.plot(places, found["mean"], "_", color=colour, markersize=5, markeredgewidth=1.4)
        else:
            face = colour if filled else "white"
            axes.plot(places, found["mean"], marker, color=colour, markerfacecolor=face, markersize=3.6, linestyle="", markeredgewidth=0.9)
    if published is not None:
        theirs = published[published["method"] == rows["method"].iloc[0]].set_index("augmentation")["ssim"].reindex(names)
        axes.plot(range(len(names)), theirs, "x", color="#888888", markersize=4.5, markeredgewidth=1.2, linestyle="", zorder=1)
    axes.axhline(0, color="#BBBBBB", linewidth=0.6, zorder=0)
    axes.set_xlim(-0.6, len(names) - 0.4)


def _plain(name: str) -> str:
    return name.replace("_", " ").replace(" degrees", "°")


def _legend(interval: str, published: bool) -> list[Line2D]:
    grey = {"color": "#444444", "linestyle": "", "markersize": 4}
    handles = [
        Line2D([], [], marker="o", label=MEASURES["ssim"][0], **grey),
        Line2D([], [], marker="o", markerfacecolor="white", label=MEASURES["spearman"][0], **grey),
        Line2D([], [], marker="_", markeredgewidth=1.4, label=MEASURES["top_intersection"][0], **grey),
        Line2D([], [], color="#444444", linewidth=1.0, label=interval),
    ]
    if published:
        label = "SSIM printed by the study (G'MIC's filters)"
        handles.append(Line2D([], [], marker="x", color="#888888", linestyle="", markersize=4.5, label=label))
    return handles
