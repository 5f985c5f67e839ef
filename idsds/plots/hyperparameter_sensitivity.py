"""Sensitivity to hyperparameters: IDSDS at every setting beside the similarity of maps, a block per method and hyperparameter."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation

from idsds.plots.style import COLUMNS, STYLE, look_of

KEY = ["model", "method", "hyperparameter"]
LANE = 0.13  # inches; a setting has one to itself, so that nothing lies over its mark, its interval and its value
GAP = 1.0  # lanes between two blocks
LEAST = 2  # lanes of a block: it is as high as its name
HOLLOW = {"markerfacecolor": "white"}


def hyperparameter_sensitivity(scores: pd.DataFrame, spreads: pd.DataFrame, *, score: str = "IDSDS", columns: int = 2) -> Figure:
    """Draw the effect of each hyperparameter on the IDSDS of a method (left) and on its maps (right).

    Args:
        scores: model, method, hyperparameter, value, default (whether it is the method's own), mean, low, high.
        spreads: model, method, family, hyperparameter, interval, and spearman, ssim, deviation with their ``low`` and ``high``.
    """
    several = spreads["model"].nunique() > 1
    blocks = [scores[(scores[KEY] == list(key)).all(axis=1)] for key in spreads[KEY].itertuples(index=False)]
    lanes = [max(LEAST, len(rows)) for rows in blocks]
    tops = np.cumsum([0.0, *(count + GAP for count in lanes)])
    with mpl.rc_context(STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, sharey=True, figsize=(COLUMNS[columns], 1.05 + LANE * tops[-1]), width_ratios=[1.5, 1], layout="constrained"
        )
        figure.get_layout_engine().set(wspace=0.05)
        names, middles, values = [], [], []
        for rows, spread, top, count in zip(blocks, spreads.itertuples(), tops, lanes, strict=False):
            colour, marker = (look := look_of(spread.method, spread.family)).ink, look.marker
            middles.append(top + (GAP + count) / 2)
            names.append(f"{spread.method}{f' ({spread.model})' if several else ''}\n{spread.hyperparameter}")
            first = middles[-1] - (len(rows) - 1) / 2
            values += [_setting(left, row, first + number, marker, colour) for number, row in enumerate(rows.itertuples())]
            _similarity(right, spread, middles[-1], marker, colour)
        left.set_yticks(middles, names, fontsize=7)
        left.set_ylim(tops[-1], 0)
        left.set_xlabel(f"{score} at each setting (-1 to 1)\nhigher is better →", fontsize=7.5)
        right.set_xlabel("similarity of maps (1: identical)\nless sensitive →", fontsize=7.5)
        right.set_xlim(min(0.0, spreads[["low", "ssim_low"]].min().min()) - 0.03, 1.03)
        for axes, handles in zip((left, right), _legends(spreads["interval"].iloc[0]), strict=True):
            for top in tops[1:-1]:
                axes.axhline(top, color="#DDDDDD", linewidth=0.6, zorder=0)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=7, borderaxespad=0.2)
        _make_room(figure, left, values)
    return figure


def _setting(axes: Axes, row: Any, lane: float, marker: str, colour: str) -> Annotation:
    """Draw mark, interval and, to their right, the value of one setting."""
    value = _short(str(row.value))
    mean, low, high = row.mean, row.low, row.high
    looks = {"fontsize": 6.5, "va": "center", "textcoords": "offset points"}
    if not np.isfinite(mean):
        return axes.annotate(f"{value}: undefined", (0, lane), (3, 0), xycoords=("axes fraction", "data"), **looks)
    axes.plot([low, high], [lane, lane], color=colour, linewidth=1.0)
    axes.plot(mean, lane, marker, color=colour, markersize=4.5, **({} if row.default else HOLLOW))
    return axes.annotate(value, (np.nanmax([mean, high]), lane), (5, 0), **looks)


def _make_room(figure: Figure, axes: Axes, texts: list[Annotation]) -> None:
    """Widen the axis to the right until every value fits, since a text's width does not depend on the scale."""
    for text in texts:
        text.set_in_layout(False)
    figure.draw_without_rendering()
    (low, high), box = axes.get_xlim(), axes.bbox
    needed = [high - low]
    for text in texts:
        end, place = text.get_window_extent().x1, axes.transData.transform((text.xy[0], 0))[0]
        if text.xycoords == "data" and end > box.x1:
            needed.append((text.xy[0] - low) * box.width / (box.width - (end - place)))
    axes.set_xlim(low, low + max(needed))


def _similarity(axes: Axes, spread: Any, middle: float, marker: str, colour: str) -> None:
    """Draw, from above, the similarity by Spearman, by SSIM, and the deviation of the maps, each with its interval."""
    looks: list[tuple[str, str, str, dict[str, Any]]] = [
        ("spearman", "", colour, {"marker": marker, "markersize": 4.5}),
        ("ssim", "ssim_", colour, {"marker": marker, "markersize": 4.5, **HOLLOW}),
        ("deviation", "deviation_", "black", {"marker": "|", "markersize": 5}),
    ]
    for number, (name, ends, ink, look) in enumerate(looks):
        lane = middle + 0.75 * (number - 1)
        axes.plot([getattr(spread, f"{ends}low"), getattr(spread, f"{ends}high")], [lane, lane], color=ink, linewidth=1.0)
        axes.plot(getattr(spread, name), lane, color=ink, **look)


def _short(text: str, most: int = 30) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _legends(interval: str) -> tuple[list[Line2D], list[Line2D]]:
    grey = {"color": "#444444", "linestyle": "", "markersize": 4.5}
    left = [
        Line2D([], [], marker="o", label="the method's own setting", **grey),
        Line2D([], [], marker="o", label="another setting", **grey, **HOLLOW),
        Line2D([], [], color="#444444", linewidth=1.0, label=interval),
    ]
    right = [
        Line2D([], [], marker="o", label="Spearman over pairs of settings", **grey),
        Line2D([], [], marker="o", label="SSIM over pairs of settings", **grey, **HOLLOW),
        Line2D([], [], marker="|", markersize=5, color="black", linestyle="", label="deviation per pixel (0: equal)"),
    ]
    return left, right
