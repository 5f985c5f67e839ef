"""IDSDS of one image on one page: the image, its deletions, the drops, and each method's map, patch sums and scatter of ranks."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import rankdata

from idsds.plots.gallery import Example
from idsds.plots.style import COLUMNS, DIVERGING, bare, look_of, styled


@styled
def how_idsds_works(
    example: Example, deleted: np.ndarray, patches: Mapping[str, pd.DataFrame], scores: pd.DataFrame, *, columns: int = 2
) -> Figure:
    """Draw the steps from left to right: first row the deletions, then a row per method.

    Args:
        deleted: (n, H, W, 3) in [0, 1], the image without each of its patches, row-major.
        patches: by method the steps patch by patch: ``logit``, ``drop``, ``rank of drop``, ``patch sum``, ``rank of sum``.
        scores: a row per method: ``method`` and ``by_hand``, the rank correlation.
    """
    width, correlations = COLUMNS[columns], scores.set_index("method")["by_hand"]
    figure = plt.figure(figsize=(width, 2.75 + 1.95 * len(patches)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.015)
    top, *rest = figure.subfigures(1 + len(patches), 1, height_ratios=[2.75, *[1.95] * len(patches)], squeeze=False)[:, 0]
    _deletions(top, example, deleted, next(iter(patches.values())))
    for (method, table), part in zip(patches.items(), rest, strict=True):
        _method(part, example, method, table, correlations[method])
    return figure


def _deletions(figure: mpl.figure.SubFigure, example: Example, deleted: np.ndarray, table: pd.DataFrame) -> None:
    side = len(example.drops)
    left, middle, right = figure.subfigures(1, 3, width_ratios=[1, 1.35, 1])
    axes = left.subplots()
    axes.imshow(example.picture)
    _lines(axes, side)
    axes.set_title(f"1. intact image of {example.target!r}\nlogit of {example.target!r}: {example.target_logit:.2f}", fontsize=7.5)
    middle.suptitle("2. each patch deleted alone\nbelow it: the logit again", fontsize=7.5)
    cells = middle.subplots(side, side, squeeze=False, gridspec_kw={"wspace": 0.0, "hspace": 0.0})
    for patch, (axes, picture, logit) in enumerate(zip(cells.flat, deleted, table["logit"], strict=True)):
        axes.imshow(picture)
        axes.set(xticks=[], yticks=[])
        height, wide = np.array(picture.shape[:2]) // side
        corner = (patch % side * wide - 0.5, patch // side * height - 0.5)
        axes.add_patch(mpl.patches.Rectangle(corner, wide, height, fill=False, edgecolor="#E69F00", linewidth=1.2))
        axes.set_xlabel(f"{logit:.2f}", fontsize=5.5 * min(1.0, 4 / side), labelpad=1)
    _cells(right.subplots(), table["drop"].to_numpy().reshape(side, side), "3. drop = intact - deleted\nbelow it: rank, 1 is smallest")


def _method(figure: mpl.figure.SubFigure, example: Example, method: str, table: pd.DataFrame, correlation: float) -> None:
    side = len(example.drops)
    first, second, third = figure.subplots(1, 3)
    _signed(first, example.maps[method])
    _lines(first, side)
    first.set_title(f"4. attribution: {method}\norange for, blue against", fontsize=7.5)
    _cells(second, table["patch sum"].to_numpy().reshape(side, side), "5. sum over each patch\nbelow it: rank, 1 is smallest")
    look = look_of(method, example.records.loc[method, "family"])
    third.plot([1, len(table)], [1, len(table)], color="#BBBBBB", linewidth=0.8, zorder=0)
    third.plot(table["rank of drop"], table["rank of sum"], **look.line(4.5, linestyle=""))
    ticks, ends = sorted({1, *range(side, len(table) + 1, side)}), (0, len(table) + 1)
    third.set(box_aspect=1, xlim=ends, ylim=ends, xticks=ticks, yticks=ticks)
    third.set_ylabel("rank of patch sum", fontsize=6.5)
    third.set_xlabel("rank of drop", fontsize=6.5)
    third.tick_params(labelsize=6)
    third.set_title(f"6. rank correlation (1 is best): {correlation:+.2f}", fontsize=7.5)


def _lines(axes: Axes, side: int) -> None:
    """The grid on an image."""
    height, width = bare(axes).images[0].get_array().shape[:2]
    for number in range(1, side):
        axes.axhline(number * height / side - 0.5, color="#888888", linewidth=0.5)
        axes.axvline(number * width / side - 0.5, color="#888888", linewidth=0.5)


def _signed(axes: Axes, values: np.ndarray) -> float:
    """Draw signed values (H, W), white at 0, and return the end of their scale, the largest absolute value."""
    limit = float(np.abs(values[np.isfinite(values)]).max(initial=0)) or 1.0
    bare(axes).imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit)
    return limit


def _cells(axes: Axes, values: np.ndarray, title: str) -> None:
    """Draw a grid of numbers in the maps' colours, each with its rank below."""
    limit = _signed(axes, values)
    ranks = rankdata(values).reshape(values.shape)
    size = 5.5 * min(1.0, 4 / len(values))
    for (row, column), value in np.ndenumerate(values):
        look = {"ha": "center", "va": "center", "color": "white" if abs(value) > 0.6 * limit else "black"}
        axes.text(column, row - 0.17, _short(value), fontsize=size, **look)
        axes.text(column, row + 0.23, f"{ranks[row, column]:g}", fontsize=size * 1.15, fontweight="bold", **look)
    axes.set_title(title, fontsize=7.5)


def _short(value: float) -> str:
    """Format with two digits to fit a cell: 6.1, 0.57, 630, and 1e-03 for tiny values."""
    if 99.5 <= abs(value) < 99_999.5:
        return f"{value:.0f}"
    return f"{value:.1g}" if 0 < abs(value) < 0.01 else f"{value:.2g}"
