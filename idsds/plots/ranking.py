"""The ranking of attribution methods: an axis per model, a marker per method."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.patheffects
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from idsds.plots.style import COLUMNS, STYLE, STYLES, handle, style_of
from idsds.statistics import null_band


def ranking(
    table: pd.DataFrame,
    families: dict[str, str],
    *,
    n_patches: int = 16,
    score: str = "IDSDS",
    models: Sequence[str] | None = None,
    columns: int = 2,
) -> Figure:
    """One horizontal axis per model with a marker per method, joined by lines from model to model.

    Args:
        table: from :func:`idsds.rank`: model, method, mean, low, high, count, nan, interval.
        families: family of each method, for its marker.
        n_patches: patches per image, which gives the band of a map that knows nothing.
        score: what the axis is called.
        models: order of the axes, top to bottom; None: as they appear.
        columns: width of the figure, in columns of a paper.
    """
    models = list(models or dict.fromkeys(table["model"]))
    width = COLUMNS[columns]
    left, right, head, foot, band = 0.95, 0.25, 0.45, 0.62, 1.55  # inches
    height = head + foot + band * len(models)
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=(width, height))
        axes = figure.add_axes((left / width, foot / height, (width - left - right) / width, band * len(models) / height))
        shown = table[table["mean"].notna()]
        values = shown[["low", "mean", "high"]].to_numpy(float)
        low, high = np.nanmin([*values.flat, 0.0]), np.nanmax([*values.flat, 0.1])
        axes.set_xlim(low - 0.03, min(1.0, high) + 0.03)
        axes.set_ylim(len(models), 0)  # one unit per model, downwards
        lines: dict[str, list[tuple[float, float]]] = {}
        for number, model in enumerate(models):
            rows = shown[shown["model"] == model].sort_values("mean").reset_index(drop=True)
            _ranking_axis(axes, rows, families, number, n_patches, label_gap=0.14 / (width - left - right))
            axes.annotate(
                f"{model}\n{_counts(table[table['model'] == model])}",
                (0, number + 0.80),
                xycoords=("axes fraction", "data"),
                xytext=(-6, 0),
                textcoords="offset points",
                ha="right",
                va="center",
            )
            for row in rows.itertuples():
                lines.setdefault(row.method, []).append((row.mean, number + 0.80))
        for method, points in lines.items():
            x, y = zip(*points, strict=True)
            colour = STYLES[style_of(method, families[method])][2]
            axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.45, zorder=1)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"{score}: mean rank correlation per image (-1 to 1), higher is better →")
        used = [key for key in STYLES if key in {style_of(row.method, families[row.method]) for row in shown.itertuples()}]
        handles = [handle(key) for key in used]
        handles.append(Line2D([], [], color="#444444", linewidth=1.2, label=table["interval"].iloc[0]))
        handles.append(mpl.patches.Patch(color="#DDDDDD", label="95 % null band: a map that knows nothing"))
        figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(0.01, 0.995), ncols=4, frameon=False, fontsize=7, columnspacing=1.2
        )
    return figure


def _ranking_axis(axes: Axes, rows: pd.DataFrame, families: dict[str, str], number: int, n_patches: int, label_gap: float) -> None:
    """Markers, intervals, names and null band of one model between the heights ``number`` and ``number + 1``."""
    level = number + 0.80
    axes.axhline(level, color="#888888", linewidth=0.7, zorder=1)
    if rows.empty:  # no method has a defined score: the counts beside the axis say so
        return
    band = null_band(n_patches, int(rows["count"].max()))
    axes.fill_betweenx([number + 0.62, number + 0.98], -band, band, color="#DDDDDD", zorder=0, linewidth=0)
    span = np.diff(axes.get_xlim())[0]
    labels = _spread(rows["mean"].to_numpy(), label_gap * span, *axes.get_xlim())
    # Neighbouring intervals would hide each other on one line: three lanes, in turn.
    for index, (row, at) in enumerate(zip(rows.itertuples(), labels, strict=True)):
        key = style_of(row.method, families[row.method])
        lane = level + (-0.07, 0.0, 0.07)[index % 3]
        _, marker, colour, filled = STYLES[key]
        axes.plot([row.low, row.high], [lane, lane], color=colour, linewidth=1.2, solid_capstyle="butt", zorder=2)
        size = 8 if marker == "*" else 5
        face = colour if filled else "white"
        axes.plot(row.mean, lane, marker, color=colour, markerfacecolor=face, markeredgewidth=1.0, markersize=size, zorder=3)
        axes.plot([row.mean, at], [lane - 0.04, number + 0.56], color="#999999", linewidth=0.4, zorder=1.5)
        name = axes.text(at, number + 0.55, row.method, rotation=55, rotation_mode="anchor", ha="left", va="center", fontsize=6.5)
        name.set_path_effects([mpl.patheffects.withStroke(linewidth=2.5, foreground="white")])  # lines pass behind


def _spread(positions: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Ascending positions moved as little as possible (least squares) so that neighbours are at least ``gap`` apart."""
    if len(positions) * gap > high - low:
        gap = (high - low) / len(positions)
    # With u_i = x_i - i * gap the condition is that u ascends: an isotonic regression, by pooling neighbours that violate it.
    blocks: list[list[float]] = []
    for value in positions - gap * np.arange(len(positions)):
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, m), (b, n) = blocks[-2:]
            blocks[-2:] = [[(a * m + b * n) / (m + n), m + n]]
    ascending = np.concatenate([np.full(int(n), value) for value, n in blocks])
    return np.clip(ascending, low, high - gap * (len(positions) - 1)) + gap * np.arange(len(positions))


def _counts(rows: pd.DataFrame) -> str:
    counts = f"n = {rows['count'].max()}"
    undefined = int(rows["nan"].sum())
    return counts + (f"\n{undefined} undefined" if undefined else "")
