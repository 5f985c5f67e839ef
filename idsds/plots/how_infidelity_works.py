"""One image's infidelity step by step: the maps, and for each perturbation the change, the predictions and the model's response."""

from __future__ import annotations

import textwrap
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from idsds.plots.style import COLUMNS, DIVERGING, WITHIN, add_legend, bare, styled

# Inches: what is written above and below a picture of the strip of maps, a row, the legend and notes.
WRITTEN, ROW, NOTES = 0.76, 1.2, 0.75
SMALL = 6.0  # points, of captions
APART = 0.17  # of a lane, from its middle to each of a map's two dots
INK, OTHER = "#003A5D", "#D55E00"
# Told apart in grey: dark filled dots over hollow squares.
MARKS = (
    {"marker": "o", "color": INK, "markeredgewidth": 0, "zorder": 3},
    {"marker": "s", "color": OTHER, "markerfacecolor": "none", "markeredgewidth": 0.5, "zorder": 2},
)
FILLED = {"marker": "o", "color": INK, "linestyle": "", "markersize": 4.5}
HOLLOW = {**FILLED, "markerfacecolor": "white", "markeredgewidth": 0.9}
RIGHT = {"color": "#444444", "linewidth": 0.7}
ZEROS = {"color": OTHER, "linewidth": 1, "linestyle": "--"}
FLOOR = {"color": "#444444", "linewidth": 1.2, "linestyle": ":"}
NOTE = (
    "d, maps and products: orange is positive, blue negative, white 0; each has its own scale, stated below it, which {within:.0%} of "
    "its nonzero pixels do not exceed. d is in normalised units, the mean over channels; the noises are one draw, times sigma. A "
    "product's sum is the map's prediction. Whiskers: {intervals}. By construction: the optimal map was fitted to at most as many "
    "different perturbations as it has unknowns, and those that judge it are among them."
)


@styled
def how_infidelity_works(walk: Any, table: pd.DataFrame, *, columns: int = 2) -> Figure:
    """Draw the image, two maps and the optimal maps; below, a row per perturbation, from the change to the error of each map."""
    drawn = list(walk.steps[0].products)
    strip_height = COLUMNS[columns] / (1 + len(drawn) + len(walk.steps)) + WRITTEN
    heights = (strip_height, ROW * len(walk.steps), NOTES)
    figure = plt.figure(figsize=(COLUMNS[columns], sum(heights)), layout="constrained")
    strip, body, notes = figure.subfigures(3, 1, height_ratios=heights)
    _maps(strip, walk, table)
    grid = body.subplots(len(walk.steps), 4 + len(drawn), squeeze=False, width_ratios=[1] * (2 + len(drawn)) + [1.2, 1.8])
    for axes, step in zip(grid, walk.steps, strict=True):
        _pictures(axes[: 2 + len(drawn)], step)
        _predicted(axes[-2], step)
        _infidelities(axes[-1], table[table["perturbation"] == step.name], step)
    products = [f"I \N{MULTIPLICATION SIGN} {name}" for name in drawn]
    titles = ["taken away: d", "what is left", *products, "each perturbation", "infidelity\n← lower is better"]
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=7)
    grid[-1, -2].set_xlabel("the logit falls by\n(logits)", fontsize=SMALL)
    grid[-1, -1].set_xlabel("squared logits, mean\nover the perturbations", fontsize=SMALL)
    _explain(notes, drawn, table, columns)
    return figure


def _maps(figure: SubFigure, walk: Any, table: pd.DataFrame) -> None:
    drawn = list(walk.steps[0].products)
    image, *rest = figure.subplots(1, 1 + len(drawn) + len(walk.steps), squeeze=False)[0]
    image.imshow(walk.picture.clip(0, 1))
    letters = int(figure.figure.get_figwidth() / (1 + len(rest)) * 72 / (SMALL * 0.62))  # of a line that is no wider than a picture
    name = walk.image_id.split("/")[-1]
    _caption(image, name if len(name) <= letters else f"…{name[1 - letters :]}", f"logit {_number(walk.steps[0].logit, '.2f')}")
    image.set_title("\n".join(["image", *textwrap.wrap(f"({walk.label})", letters, max_lines=2, placeholder="…")]), fontsize=SMALL)
    for axes, name in zip(rest, drawn, strict=False):
        _signed(axes, walk.maps[name])
        axes.set_title(f"map:\n{name}", fontsize=SMALL)
    similarity = table[table["map"] == walk.settings.optimal].set_index("perturbation")["cosine_with_gradient"]
    for axes, step in zip(rest[len(drawn) :], walk.steps, strict=True):
        cosine = similarity[step.name]
        _signed(axes, step.optimal, "" if np.isnan(cosine) else f"cosine {_number(cosine, '.3f')}")
        axes.set_title(f"optimal, {step.name}".replace(", ", ",\n"), fontsize=SMALL)
    cosines = "" if similarity.isna().all() else "; cosine: with Gradient's"
    sought = walk.settings.optimal.removeprefix("optimal (").removesuffix(")")
    figure.suptitle(f"The maps. Optimal: the one of least infidelity under each perturbation, fitted on {sought}{cosines}", fontsize=7)


def _pictures(row: np.ndarray, step: Any) -> None:
    taken, left, *products = row
    _signed(taken, step.taken)
    taken.set_ylabel(step.name.replace(", ", ",\n"), fontsize=7)
    left.imshow(step.picture.clip(0, 1))
    change = float(step.changes[0])
    digits = int(np.clip(1 - np.floor(np.log10(abs(change) or 1)), 2, 6))  # so many that the change shows
    before, after = (_number(value, f".{digits}f") for value in (step.logit, step.logit - change))
    _caption(left, f"{before} → {after}", f"falls by {_number(change)}")
    for axes, (name, product) in zip(products, step.products.items(), strict=True):
        _signed(axes, product, f"predicts {_number(step.predicted[name][0])}", first=True)


def _signed(axes: Axes, values: np.ndarray, more: str = "", *, first: bool = False) -> None:
    """Draw signed values (H, W) on their own scale, white at 0, with the scale and ``more`` below."""
    magnitude = np.abs(values[values != 0])
    scale = float(np.quantile(magnitude, WITHIN)) if len(magnitude) else 1.0
    axes.imshow(values, cmap=DIVERGING, vmin=-scale, vmax=scale)
    told = f"scale ±{_number(scale)}"
    _caption(axes, *((more, told) if first else (told, more)))


def _caption(axes: Axes, *lines: str) -> None:
    bare(axes).set_xlabel("\n".join(lines), fontsize=SMALL, labelpad=2)


def _number(value: float, form: str = ".2g") -> str:
    return f"{value:{form}}".replace("-", "\N{MINUS SIGN}")


def _predicted(axes: Axes, step: Any) -> None:
    """Draw a mark per perturbation and map: predicted against actual change; on the line they are equal."""
    for look, name in zip(MARKS, step.products, strict=False):
        axes.plot(step.changes, step.predicted[name], linestyle="", markersize=2.2, **look)
    ends = [step.changes.min(), step.changes.max()]
    axes.plot(ends, ends, **RIGHT)
    axes.locator_params(axis="x", nbins=3)
    axes.set_ylabel("map predicts", fontsize=SMALL, labelpad=1)
    axes.tick_params(labelsize=SMALL)


def _infidelities(axes: Axes, rows: pd.DataFrame, step: Any) -> None:
    """Draw two dots per map, unscaled above and optimally scaled below, beside the line of a zero map."""
    zero, floor = rows["map_of_zeros"].iloc[0], rows["floor"].iloc[0]
    shown = rows.iloc[:-1] if step.by_construction else rows
    values = shown[["infidelity", "normalised"]].to_numpy()
    least = values[values > 0].min(initial=zero) / 2
    at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "fontsize": SMALL, "va": "center"}
    for lane, row in enumerate(shown.itertuples()):
        ends = (
            (row.infidelity, row.low, row.high, FILLED, -APART),
            (row.normalised, row.normalised_low, row.normalised_high, HOLLOW, APART),
        )
        for value, low, high, look, apart in ends:
            if value < least:  # a logarithmic axis has no 0
                axes.annotate("0", (0, lane + apart), (2, 0), **at)
                continue
            axes.plot([max(low, least), high], [lane + apart] * 2, color=INK, linewidth=1)
            axes.plot(value, lane + apart, **look)
    if step.by_construction:
        axes.annotate("≈ 0, by construction", (1, len(shown)), (0, 0), ha="right", **at)
    axes.axvline(zero, zorder=0, **ZEROS)
    if floor > least:
        axes.axvline(floor, zorder=0, **FLOOR)
    axes.set_yticks(range(len(rows)), rows["map"], fontsize=SMALL)
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(least, 2 * max(rows["high"].max(), zero))
    axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())


def _explain(figure: SubFigure, drawn: list[str], table: pd.DataFrame, columns: int) -> None:
    handles = [Line2D([], [], linestyle="", markersize=3, label=name, **look) for look, name in zip(MARKS, drawn, strict=False)]
    handles += [
        Line2D([], [], label="correct prediction", **RIGHT),
        Line2D([], [], label="as it is", **FILLED),
        Line2D([], [], label="optimally scaled", **HOLLOW),
        Line2D([], [], label="zero map", **ZEROS),
    ]
    if table["floor"].notna().any():
        handles.append(Line2D([], [], label="floor of every map: squared mean change", **FLOOR))
    add_legend(figure, handles, len(handles), loc="upper center", fontsize=SMALL, handletextpad=0.5, columnspacing=1.2)
    intervals = "; ".join(table["interval"].unique())
    text = textwrap.fill(NOTE.format(within=WITHIN, intervals=intervals), int(COLUMNS[columns] * 72 / (SMALL * 0.53)))
    figure.text(0.01, 0.7, text, fontsize=SMALL, va="top")
