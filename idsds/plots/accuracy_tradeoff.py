"""Accuracy against the best IDSDS of each model, with the Pareto front."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.patheffects
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from idsds.plots.style import COLUMNS, PUBLISHED, add_legend, drawn_from, scored_on, styled

INK = "#0072B2"
SIZE = 6.5  # points


@styled
def accuracy_tradeoff(table: pd.DataFrame, *, published: pd.DataFrame | None = None, score: str = "IDSDS", columns: int = 2) -> Figure:
    """Draw a point per model with intervals on both axes; models on the Pareto front are filled and connected.

    Args:
        table: model, accuracy and idsds, each with ``_low`` and ``_high``, front (whether no other model is as good in both).
        published: model, accuracy, idsds, inferred; drawn in grey and hollow, a thin line joins a model of
            both.
    """
    width = COLUMNS[columns]
    figure, axes = plt.subplots(figsize=(width, 0.45 + (0.62 if columns == 2 else 1.0) * width), layout="constrained")
    for row in table.itertuples():
        looks = {"color": INK, "linewidth": 0.8, "alpha": 0.7, "zorder": 2}
        axes.plot([row.accuracy_low, row.accuracy_high], [row.idsds, row.idsds], **looks)
        axes.plot([row.accuracy, row.accuracy], [row.idsds_low, row.idsds_high], **looks)
        axes.plot(row.accuracy, row.idsds, "o", color=INK, markerfacecolor=INK if row.front else "white", markersize=5, zorder=3)
    front = table[table["front"]].sort_values("accuracy")
    axes.step(front["accuracy"], front["idsds"], where="pre", color=INK, linewidth=1.2, linestyle="--", zorder=1.5)
    labels = [(row.accuracy, row.idsds, row.model, "black") for row in table.itertuples()]
    if published is not None and len(published):
        ours = table.set_index("model")
        for row in published.itertuples():
            axes.plot(row.accuracy, row.idsds, "o", color=PUBLISHED, markerfacecolor="white", markersize=5, zorder=2.5)
            if row.inferred:
                axes.plot(row.accuracy, row.idsds, ".", color=PUBLISHED, markersize=2, zorder=2.6)
            if row.model in ours.index:
                ends = [row.accuracy, ours.loc[row.model, "accuracy"]], [row.idsds, ours.loc[row.model, "idsds"]]
                axes.plot(*ends, color=PUBLISHED, linewidth=0.6, zorder=1)
            else:
                labels.append((row.accuracy, row.idsds, row.model, PUBLISHED))
    gap = " " if columns == 2 else "\n"
    axes.set_xlabel(f"accuracy of the in-domain net on{gap}intact images (0 to 1), higher is better →")
    axes.set_ylabel(f"{score} of the best method (-1 to 1), higher is better →")
    axes.grid(color="#E5E5E5", linewidth=0.5)
    axes.margins(0.08)
    _legend(figure, table, published is not None and len(published) > 0, score, columns)
    place_labels(figure, axes, labels)
    return figure


def _legend(figure: Figure, table: pd.DataFrame, published: bool, score: str, columns: int) -> None:
    dot, over = {"linestyle": "", "marker": "o", "markersize": 5}, scored_on(table)
    handles = [
        Line2D([], [], color=INK, label="on the Pareto front", **dot),
        Line2D([], [], color=INK, markerfacecolor="white", label="another model is better in both", **dot),
        Line2D([], [], color=INK, linewidth=0.8, label=f"95 % over {drawn_from(table)}"),
    ]
    if published:
        handles.append(Line2D([], [], color=PUBLISHED, markerfacecolor="white", label="published", **dot))
    title = f"n = {table['count'].max()} {over} for {score}, {table['accuracy_count'].max()} for accuracy"
    if "top5" in table:
        title += f"; top-5 accuracy: {table['top5'].min():.3f} to {table['top5'].max():.3f}"
    add_legend(figure, handles, columns, title=title)


def place_labels(figure: Figure, axes: Axes, labels: list[tuple[float, float, str, str]]) -> None:
    """Write each text beside its point (x, y, text, colour) without covering another text or point.

    Positions are tried at growing distances all around, within the axes; a thin line leads back to a distant point.
    """
    figure.canvas.draw()
    figure.set_layout_engine("none")  # the axes stay where they are from here on
    dots = np.array([axes.transData.transform((x, y)) for x, y, _, _ in labels])
    pixel = figure.dpi / 72
    taken = [Bbox.from_bounds(x - 4 * pixel, y - 4 * pixel, 8 * pixel, 8 * pixel) for x, y in dots]
    frame = axes.get_window_extent()
    for (x, y, text, colour), dot in zip(labels, dots, strict=True):
        name = axes.annotate(text, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=SIZE, color=colour, zorder=4)
        name.set_path_effects([mpl.patheffects.withStroke(linewidth=1.8, foreground="white")])
        box = name.get_window_extent()
        offset, box = _free_place(box, dot, taken, frame, pixel)
        name.set_position(tuple(offset / pixel))
        taken.append(box)
        nearest = np.clip(dot, box.min, box.max)
        if np.hypot(*(nearest - dot)) > 7 * pixel:
            end = axes.transData.inverted().transform(nearest)
            axes.plot([x, end[0]], [y, end[1]], color="#999999", linewidth=0.4, zorder=1.6, scalex=False, scaley=False)


def _free_place(box: Bbox, dot: np.ndarray, taken: list[Bbox], frame: Bbox, pixel: float) -> tuple[np.ndarray, Bbox]:
    """Return the offset of the text's lower left corner from its point, in pixels, and its rectangle."""
    for distance in np.arange(5, 200, 4) * pixel:
        for angle in np.radians([0, 180, 90, 270, 45, 315, 135, 225, 20, 340, 160, 200, 70, 110, 250, 290]):
            way = np.array([np.cos(angle), np.sin(angle)])
            middle = dot + way * (distance + np.abs(way) * [box.width / 2, box.height / 2])
            corner = middle - [box.width / 2, box.height / 2]
            tried = Bbox.from_bounds(*corner, box.width, box.height)
            inside = tried.x0 >= frame.x0 and tried.x1 <= frame.x1 and tried.y0 >= frame.y0 and tried.y1 <= frame.y1
            if inside and not any(tried.overlaps(other) for other in taken):
                return corner - dot, tried
    return np.zeros(2), box
