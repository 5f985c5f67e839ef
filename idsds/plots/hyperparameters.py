"""Sensitivity to hyperparameters: IDSDS at every setting beside the likeness of the maps, a row per method and hyperparameter."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from idsds.plots.style import COLUMNS, STYLE, Look, look_of

KEY = ["model", "method", "hyperparameter"]


def hyperparameters(scores: pd.DataFrame, spreads: pd.DataFrame, columns: int = 2) -> Figure:
    """What each hyperparameter does to the IDSDS of a method (left) and to its maps (right).

    Args:
        scores, spreads: the tables of :func:`idsds.sensitivity.measure`.
        columns: width of the figure, in columns of a paper.
    """
    several = spreads["model"].nunique() > 1
    width, row, head, foot = COLUMNS[columns], 0.34, 0.62, 0.55  # inches
    height = head + foot + row * len(spreads)
    with mpl.rc_context(STYLE):
        figure, (left, right) = plt.subplots(
            1,
            2,
            sharey=True,
            figsize=(width, height),
            gridspec_kw={"width_ratios": [1.5, 1], "wspace": 0.06, "left": 0.25, "right": 0.985, "top": 1 - head / height},
        )
        figure.subplots_adjust(bottom=foot / height)
        labels = []
        for place, spread in enumerate(spreads.itertuples()):
            rows = scores[(scores[KEY] == [spread.model, spread.method, spread.hyperparameter]).all(axis=1)]
            _settings(left, rows, place, look_of(spread.method, spread.family))
            _likeness(right, spread, place, look_of(spread.method, spread.family))
            tried = ", ".join(map(str, rows["value"]))
            labels.append(f"{spread.method}{f' ({spread.model})' if several else ''}: {spread.hyperparameter}\n{_short(tried)}")
        left.set_yticks(range(len(labels)), labels, fontsize=6.5)
        left.set_ylim(len(labels) - 0.45, -0.65)
        low, high = left.get_xlim()
        left.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        left.set_xlabel("IDSDS at each setting (-1 to 1), higher is better →", fontsize=7)
        right.set_xlabel("likeness of maps (1: the same), less sensitive →", fontsize=6.3)
        least = min(0.0, spreads[["low", "ssim"]].min().min())
        right.set_xlim(least - 0.03, 1.03)
        for axes in (left, right):
            axes.grid(axis="y", color="#EEEEEE", zorder=0)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
        figure.legend(
            handles=_legend(spreads["interval"].iloc[0]),
            loc="upper left",
            bbox_to_anchor=(0.005, 0.998),
            ncols=3,
            frameon=False,
            fontsize=7,
        )
    return figure


def _settings(axes: Axes, rows: pd.DataFrame, place: int, look: Look) -> None:
    """One mark per setting from the first value (small) to the last (large); the extremes are named."""
    marker, colour = look.marker, look.ink
    axes.plot([rows["mean"].min(), rows["mean"].max()], [place, place], color=colour, linewidth=0.8, zorder=1)
    for number, row in enumerate(rows.itertuples()):
        size = 3.0 + 3.5 * number / max(1, len(rows) - 1)
        face = colour if row.default else "white"
        axes.plot([row.low, row.high], [place, place], color="#BBBBBB", linewidth=2.6, alpha=0.5, zorder=0.5, solid_capstyle="butt")
        axes.plot(
            row.mean, place, marker, color=colour, markerfacecolor=face, markersize=size, markeredgewidth=0.9, zorder=3 - 0.01 * number
        )
    for number, align in ((rows["mean"].idxmin(), "right"), (rows["mean"].idxmax(), "left")):
        if rows["mean"].max() > rows["mean"].min():
            offset = (-5, 4) if align == "right" else (5, 4)
            row = rows.loc[number]
            axes.annotate(_short(str(row["value"]), 18), (row["mean"], place), offset, textcoords="offset points", ha=align, fontsize=5.5)


def _likeness(axes: Axes, spread: object, place: int, look: Look) -> None:
    marker, colour = look.marker, look.ink
    axes.plot([spread.low, spread.high], [place - 0.12] * 2, color=colour, linewidth=1.2, solid_capstyle="butt")
    axes.plot(spread.spearman, place - 0.12, marker, color=colour, markersize=4.5)
    axes.plot(spread.ssim, place + 0.12, marker, color=colour, markerfacecolor="white", markersize=4.5)
    axes.plot(spread.deviation, place + 0.12, "|", color="black", markersize=6)


def _short(text: str, most: int = 44) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _legend(interval: str) -> list[Line2D]:
    grey = {"color": "#444444", "linestyle": ""}
    return [
        Line2D([], [], marker="o", markerfacecolor="#444444", markersize=5, label="left: the method's own setting", **grey),
        Line2D([], [], marker="o", markerfacecolor="white", markersize=4, label="another setting, larger: later in the list", **grey),
        Line2D([], [], color="#BBBBBB", linewidth=2.6, label=interval),
        Line2D([], [], marker="o", markersize=4.5, label="right: Spearman over pairs of settings", **grey),
        Line2D([], [], marker="o", markerfacecolor="white", markersize=4.5, label="SSIM over pairs of settings", **grey),
        Line2D([], [], marker="|", markersize=6, color="black", linestyle="", label="deviation per pixel (0: the same)"),
    ]
