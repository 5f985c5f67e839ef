"""Parallel axes: one horizontal axis per model with a marker per method, as in rankings and design choices.

Everything is laid out in inches, so that names never overlap: they are drawn at 55 degrees, or vertically if that takes too much room; if
even that does not fit, the figure becomes wider than requested, with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.patheffects
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.optimize import isotonic_regression

from idsds.plots.style import COLUMNS, PUBLISHED, STYLE, add_legend, family_of, handles_of, look_of, styled, text_width
from idsds.published import POSTER, REPRODUCTION
from idsds.statistics import null_band

NAME, SMALL = 6.5, 7.0  # points: names of methods, legends
PITCH = 0.105  # inches between two lines of names, measured across the letters
LEADER, LANE, BELOW = 0.2, 0.085, 0.3  # inches: from names to markers, between lanes of markers, below the axis
FOOT, RIGHT, LINE = 0.62, 0.2, 0.15  # inches: axis labels, margin, a line of a legend
NOTHING = 0.04  # inches kept free at the border
REPEATED = "#BBBBBB"  # the face of a published value that another group has measured
CEILING = " †"  # behind the name of a method that has queried the deletions by which it is judged


class Join(NamedTuple):
    """A line from a method's marker on one axis to its marker on another."""

    method: str
    first: str
    second: str
    style: str = "-"
    width: float = 0.6


def joins_along(table: pd.DataFrame, models: Sequence[str]) -> list[Join]:
    """Return the lines that connect each method's markers from axis to axis, in the order of ``models``, past those that lack it."""
    joins = []
    for method, rows in table[table["mean"].notna()].groupby("method", sort=False):
        with_it = [model for model in models if model in set(rows["model"])]
        joins += [Join(str(method), first, second) for first, second in pairwise(with_it)]
    return joins


@dataclass(frozen=True)
class Layout:
    """The layout, in inches.

    Args:
        models: axes from top to bottom.
        beside: lines of text to the left of each axis.
        values: for each model, the methods' names and means, ascending.
        low, high: limits of the axis.
        head: height of the legends.
    """

    models: Sequence[str]
    beside: Sequence[str]
    values: Sequence[tuple[list[str], np.ndarray]]
    low: float
    high: float
    wanted: float
    head: float

    @cached_property
    def left(self) -> float:
        """The room for the models' names."""
        lines = [line for text in self.beside for line in text.split("\n")]
        return 0.12 + max(text_width(line, STYLE["font.size"]) / 72 for line in lines)

    @cached_property
    def most(self) -> int:
        """Names on the fullest axis."""
        return max(1, *(len(names) for names, _ in self.values))

    @cached_property
    def angle(self) -> int:
        """Of the names, in degrees."""
        return 55 if self.most * self._gap(55) <= self.wanted - self.left - RIGHT else 90

    @staticmethod
    def _gap(angle: float) -> float:
        return PITCH / np.sin(np.radians(angle))

    @cached_property
    def gap(self) -> float:
        """The distance between two names along the axis."""
        return self._gap(self.angle)

    @cached_property
    def axis(self) -> float:
        """The length of the axes: the width minus the models' names and the last method's name."""
        length = max(self.wanted - self.left - RIGHT, self.most * self.gap)
        for _ in range(3):  # names move with the length, and their ends with them
            over = max(self._ends(length), default=0) - (self.left + length + RIGHT)
            if over <= 0:
                break
            length = max(length - over, self.most * self.gap)
        return length

    def _ends(self, length: float) -> list[float]:
        """Return the right ends of the names beside axes of a length, from the figure's left edge."""
        across = np.cos(np.radians(self.angle)) / 72
        return [
            self.left + at + text_width(name, NAME) * across + NOTHING
            for names, means in self.values
            for name, at in zip(names, self._places(means, length), strict=True)
        ]

    @cached_property
    def width(self) -> float:
        """The figure's width: as requested, or as wide as the names need."""
        return max(self.wanted, self.left + self.axis + PITCH, *self._ends(self.axis))

    @cached_property
    def names(self) -> float:
        """The height of the names."""
        longest = max((text_width(name, NAME) / 72 for names, _ in self.values for name in names), default=0)
        return longest * np.sin(np.radians(self.angle)) + PITCH

    @property
    def band(self) -> float:
        """Height of one model."""
        return self.names + LEADER + 2 * LANE + BELOW

    @property
    def height(self) -> float:
        """Of the figure."""
        return self.head + self.band * len(self.models) + FOOT

    def level(self, number: int) -> float:
        """The height of an axis, from the top of the first band downwards."""
        return self.band * (number + 1) - BELOW

    def places(self, number: int) -> np.ndarray:
        """Return the positions of a model's names along its axis, in inches from its start."""
        return self._places(self.values[number][1], self.axis)

    def _places(self, means: np.ndarray, length: float) -> np.ndarray:
        return spread((means - self.low) / (self.high - self.low) * length, self.gap, 0.0, length)


@styled
def parallel_axes(
    table: pd.DataFrame,
    families: dict[str, str],
    models: Sequence[str],
    joins: Sequence[Join],
    *,
    n_patches: int = 16,
    score: str = "IDSDS",
    columns: int = 2,
    published: pd.DataFrame | None = None,
    notes: Sequence[Artist] = (),
    where: str = "",
) -> Figure:
    """Draw one horizontal axis per model: markers with intervals and names, the null band, and lines between axes.

    Args:
        table: from :func:`idsds.rank`: model, method, mean, low, high, count, nan, interval, and optionally ``ceiling``, which adds a
            dagger to the method's name.
        models: axes from top to bottom.
        joins: lines between axes; those without a mean at both ends are omitted.
        published: from :func:`idsds.published.compare`: model, method, published, inferred, source.
        notes: further handles for the legend.
        where: which images these are, in words, below the axis.
    """
    published = None if published is None or published.empty else published[published["model"].isin(models)]
    shown = table[table["mean"].notna() & table["model"].isin(models)]
    rows = [shown[shown["model"] == model].sort_values("mean", kind="stable").reset_index(drop=True) for model in models]
    upper, lower = handles_of_axes(table, shown, families, published, notes)
    across = (4, 2) if columns == 2 else (3, 1)
    heights = [LINE * -(-len(handles) // ncols) for handles, ncols in zip((upper, lower), across, strict=True)]
    edges = _ends(shown, published)
    beside = [f"{model}\n{_counts(table[table['model'] == model])}" for model in models]
    values = [([_label(row) for row in one.itertuples()], one["mean"].to_numpy(float)) for one in rows]
    layout = Layout(models, beside, values, *edges, wanted=COLUMNS[columns], head=sum(heights) + 0.15)
    if layout.width > COLUMNS[columns] + 0.01:
        message = f"{layout.most} names do not fit a width of {COLUMNS[columns]} inches: the figure is {layout.width:.1f} inches wide"
        warnings.warn(message, stacklevel=4)
    figure = plt.figure(figsize=(layout.width, layout.height))
    bottom, tall = FOOT / layout.height, layout.band * len(models) / layout.height
    axes = figure.add_axes((layout.left / layout.width, bottom, layout.axis / layout.width, tall))
    axes.set_xlim(*edges)
    axes.set_ylim(layout.band * len(models), 0)  # inches, downwards
    for number, one in enumerate(rows):
        _draw_axis(axes, layout, number, one, families, n_patches, published)
    _draw_joins(axes, layout, rows, joins, families)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    gap = " " if columns == 2 else "\n"
    label = f"{score}: mean rank correlation per image{gap}(-1 to 1), higher is better →"
    axes.set_xlabel(f"{label}\n{where}" if where else label)
    _draw_legends(figure, layout.height, zip((upper, lower), across, heights, strict=True))
    return figure


def _draw_legends(figure: Figure, height: float, legends: Iterable[tuple[list, int, float]]) -> None:
    """Stack the legends at the top; each has its handles, its number of columns and its height in inches."""
    tight = {"borderpad": 0, "borderaxespad": 0, "labelspacing": 0.35, "columnspacing": 1.2}
    top = 0.05
    for handles, ncols, tall in legends:
        corner = (0.01, 1 - top / height)
        add_legend(figure, handles, ncols, loc="upper left", bbox_to_anchor=corner, fontsize=SMALL, **tight)
        top += tall


def _draw_axis(
    axes: Axes, layout: Layout, number: int, rows: pd.DataFrame, families: dict[str, str], n_patches: int, published: pd.DataFrame | None
) -> None:
    """Draw one model's markers, intervals, names and null band."""
    level, model = layout.level(number), layout.models[number]
    axes.axhline(level, color="#888888", linewidth=0.7, zorder=1)
    position = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "xytext": (-6, 0)}
    axes.annotate(layout.beside[number], (0, level), ha="right", va="center", **position)
    if rows.empty:  # no method has a defined score: the counts beside the axis say so
        return
    band = null_band(n_patches, int(rows["count"].max()))
    axes.fill_betweenx([level - 0.2, level + 0.2], -band, band, color="#DDDDDD", zorder=0, linewidth=0)
    per_inch = (layout.high - layout.low) / layout.axis
    above = layout.band * number + layout.names
    # Neighbouring intervals would hide each other on one line: three lanes, in turn.
    for index, (row, place) in enumerate(zip(rows.itertuples(), layout.places(number), strict=True)):
        look = look_of(row.method, family_of(row.method, families))
        lane, at = level + LANE * (index % 3 - 1), layout.low + place * per_inch
        axes.plot([row.low, row.high], [lane, lane], color=look.colour, linewidth=1.2, solid_capstyle="butt", zorder=2)
        axes.plot(row.mean, lane, linestyle="", zorder=3, **look.line())
        axes.plot([row.mean, at], [lane - 0.05, above + 0.03], color="#999999", linewidth=0.4, zorder=1.5)
        turned = {"rotation": layout.angle, "rotation_mode": "anchor", "ha": "left", "va": "center"}
        name = axes.text(at, above, _label(row), fontsize=NAME, parse_math=False, **turned)
        name.set_path_effects([mpl.patheffects.withStroke(linewidth=2.5, foreground="white")])  # lines pass behind
    if published is not None:
        for row in published[published["model"] == model].itertuples():
            look = look_of(row.method, family_of(row.method, families))
            edge = {"marker": look.marker, "markersize": look.line(4)["markersize"], "markeredgecolor": PUBLISHED, "markeredgewidth": 0.8}
            face = REPEATED if getattr(row, "source", POSTER) == REPRODUCTION else "white"
            axes.plot(row.published, level + 2 * LANE, linestyle="", markerfacecolor=face, zorder=2.5, **edge)
            if row.inferred:
                axes.plot(row.published, level + 2 * LANE, linestyle="", marker=".", color=PUBLISHED, markersize=2, zorder=2.6)


def _draw_joins(axes: Axes, layout: Layout, rows: Sequence[pd.DataFrame], joins: Sequence[Join], families: dict[str, str]) -> None:
    place = {model: number for number, model in enumerate(layout.models)}
    means = [one.set_index("method")["mean"] for one in rows]
    for join in joins:
        ends = [place[join.first], place[join.second]]
        if all(join.method in means[end] for end in ends):
            x, y = [means[end][join.method] for end in ends], [layout.level(end) for end in ends]
            colour = look_of(join.method, family_of(join.method, families)).colour
            axes.plot(x, y, color=colour, linewidth=join.width, linestyle=join.style, alpha=0.55, zorder=1)


def handles_of_axes(
    table: pd.DataFrame, shown: pd.DataFrame, families: Mapping[str, str], published: pd.DataFrame | None, notes: Sequence[Artist]
) -> tuple[list[Artist], list[Artist]]:
    """Return the entries of the two legends: the meaning of markers, and of lines and bands."""
    upper: list[Artist] = [*handles_of(dict.fromkeys(shown["method"]), families)]
    lower: list[Artist] = [Line2D([], [], color="#444444", linewidth=1.2, label=table["interval"].iloc[0])]
    lower.append(mpl.patches.Patch(color="#DDDDDD", label="95 % null band of random maps"))
    if published is not None and len(published):
        looks = {"linestyle": "", "marker": "o", "markersize": 4, "markeredgecolor": PUBLISHED, "markerfacecolor": "white"}
        dotted = " (dot: its label was inferred)" if published["inferred"].any() else ""
        lower.append(Line2D([], [], label=f"published, in the method's shape{dotted}", **looks))
        if "source" in published and (published["source"] == REPRODUCTION).any():
            lower.append(Line2D([], [], label=f"an independent run ({REPRODUCTION})", **{**looks, "markerfacecolor": REPEATED}))
    if "ceiling" in shown and shown["ceiling"].any():
        lower.append(Line2D([], [], linestyle="", label=f"{CEILING.strip()} has queried these same deletions: an upper bound"))
    return upper, [*lower, *notes]


def _label(row: Any) -> str:
    return f"{row.method}{CEILING}" if getattr(row, "ceiling", False) else row.method


def _ends(shown: pd.DataFrame, published: pd.DataFrame | None) -> tuple[float, float]:
    """Return the limits of the axis, which include all markers, intervals and 0."""
    values = [*shown[["low", "mean", "high"]].to_numpy(float).flat, *([] if published is None else published["published"]), 0.0, 0.1]
    return float(np.nanmin(values)) - 0.03, min(1.0, float(np.nanmax(values))) + 0.03


def _counts(rows: pd.DataFrame) -> str:
    counts = f"n = {rows['count'].max()}"
    undefined = int(rows["nan"].sum())
    return counts + (f"\n{undefined} undefined" if undefined else "")


def spread(positions: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Move ascending positions as little as possible (least squares) so that neighbours are at least ``gap`` apart."""
    if len(positions) * gap > high - low:
        gap = (high - low) / max(1, len(positions))
    if not len(positions):
        return np.zeros(0)
    # With u_i = x_i - i * gap the condition is that u ascends.
    ascending = isotonic_regression(positions - gap * np.arange(len(positions))).x
    return np.clip(ascending, low, high - gap * (len(positions) - 1)) + gap * np.arange(len(positions))
