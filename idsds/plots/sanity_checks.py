"""Sanity checks: the similarity of maps when the model's layers, or its labels, are randomised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from idsds.plots.lines import line_handles, line_looks
from idsds.plots.style import COLUMNS, STYLE, add_legend, panel_grid

# check: (title, axis label, the panel's fraction of the width)
CHECKS = {
    "cascading": ("cascading", "layers randomised,\n% from the output down", 1.0),
    "independent": ("one group of layers alone", "first and last layer of the group\nthat is randomised", 1.25),
    "labels": ("permuted labels", "", 0.8),
}
SIMILARITIES = {"spearman": "Spearman (-1 to 1)", "absolute": "Spearman of\nabsolute values", "ssim": "SSIM (-1 to 1)"}
Looks = Mapping[str, dict[str, Any]]


def sanity_checks(table: pd.DataFrame, model: str | None = None, *, similarities: Sequence[str] | None = None, columns: int = 2) -> Figure:
    """Draw a row per similarity and a panel per check. Groups of layers randomised alone have no order, so their points are not
    connected.

    A small number beside a point is the number of defined values, if some are undefined.

    Args:
        table: from the study ``sanity_checks``: model, method, family, check, depth, layers, similarity, mean,
            low, high, count, undefined, maps, train_accuracy, train_top5, interval.
        model: which model; None for the first.
        similarities: some of ``spearman``, ``absolute``, ``ssim``; None for all.
    """
    model = table["model"].iloc[0] if model is None else model
    table = table[table["model"] == model]
    rows = list(similarities or [name for name in SIMILARITIES if name in set(table["similarity"])])
    checks = [name for name in CHECKS if name in set(table["check"])]
    looks = line_looks(dict(zip(table["method"], table["family"], strict=True)))
    with mpl.rc_context(STYLE):
        shares = {"sharex": "col", "sharey": True, "width_ratios": [CHECKS[name][2] for name in checks]}
        figure, grid = panel_grid(len(rows), len(checks), COLUMNS[columns], 1.75 + 1.6 * len(rows), **shares)
        lowest = min(-0.1, float(np.nanmin([0, *table["low"].dropna()])) - 0.05)
        for row, similarity in zip(grid, rows, strict=True):
            for axes, check in zip(row, checks, strict=True):
                _panel(axes, table[(table["similarity"] == similarity) & (table["check"] == check)], check, looks)
                axes.set_ylim(lowest, 1.07)
            row[0].set_ylabel(f"{SIMILARITIES[similarity]}\nlower is better")
        for axes, check in zip(grid[0], checks, strict=True):
            learned, near = table.loc[table["check"] == check, ["train_accuracy", "train_top5"]].mean()
            said = f"\n({learned:.0%} learned,\ntop-5: {near:.0%})" if check == "labels" else ""
            axes.set_title(CHECKS[check][0] + said, fontsize=8)
        for axes, check in zip(grid[-1], checks, strict=True):
            _label(axes, table[table["check"] == check], check, looks)
        handles, title = line_handles(looks), _heading(table, model)
        add_legend(figure, handles, min(len(looks), 7), handlelength=3.0, columnspacing=1.2, title=title)
    return figure


def _panel(axes: Axes, part: pd.DataFrame, check: str, looks: Looks) -> None:
    """Draw the similarities of one check: connected if layers are randomised cumulatively, otherwise points side by side."""
    axes.axhline(0, color="#888888", linewidth=0.6, zorder=0)
    axes.grid(axis="y", color="#EEEEEE", linewidth=0.5)
    places: dict[Any, float] = {}
    for number, (method, look) in enumerate(looks.items()):
        line = part[part["method"] == method].sort_values("depth")
        if check == "cascading":
            x = 100 * line["depth"].to_numpy()
            axes.plot([0, *x], [1, *line["mean"]], **look)  # on the intact model, every map equals itself
        else:
            side = (number + 0.5) / len(looks) - 0.5
            x = np.array([number] if check == "labels" else np.arange(len(line)) + 0.8 * side)[: len(line)]
            axes.plot(x, line["mean"], **{**look, "linestyle": ""})
        axes.vlines(x, line["low"], line["high"], color=look["color"], linewidth=1.0, zorder=1.5)
        places |= dict(zip(line.index, x, strict=True))
    if check == "independent":
        for edge in range(1, part["depth"].nunique()):
            axes.axvline(edge - 0.5, color="#DDDDDD", linewidth=0.5, zorder=0)
    for _, rows in part[(part["undefined"] > 0) & part["mean"].notna()].groupby("depth"):
        for number, row in enumerate(rows.sort_values("mean", ascending=False).itertuples()):
            up = number == 0 and (len(rows) > 1 or row.mean < 0.9)  # of several, the highest has its number above it, the others below
            offset, side = ((2.5, 2.5), "bottom") if up else ((2.5, -2.5), "top")
            where = (places[row.Index], row.mean)
            axes.annotate(f"{row.maps - row.undefined}", where, offset, textcoords="offset points", fontsize=5, va=side)


def _label(axes: Axes, part: pd.DataFrame, check: str, looks: Looks) -> None:
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    if check == "labels":
        axes.set_xticks(range(len(looks)), list(looks), fontsize=7, **turned)
        axes.set_xlim(-0.6, len(looks) - 0.4)
    elif check == "independent":
        names = list(part.groupby("depth")["layers"].first())
        size = 5.5 if len(names) <= 6 else 4.5
        axes.set_xticks(range(len(names)), [name.replace(" to ", "\nto ") for name in names], fontsize=size, **turned)
        axes.set_xlim(-0.55, len(names) - 0.45)
    if CHECKS[check][1]:
        axes.set_xlabel(CHECKS[check][1], fontsize=7.5)


def _heading(table: pd.DataFrame, model: str) -> str:
    """Return what the figure shows, what its bars cover, and what the small numbers are."""
    layers = table[table["check"] != "labels"]
    covered = (layers if len(layers) else table)["interval"].iloc[0]
    lines = [f"{model}, n = {int((table['count'] + table['nan']).max())} images; bars: {covered}"]
    lines.append("points side by side are in the order of the legend")
    if table["undefined"].any():
        lines[-1] += f"; small numbers: maps with a value, where fewer than {_all_maps(table)}"
    return "\n".join(lines)


def _all_maps(table: pd.DataFrame) -> str:
    """Return how many maps each point averages: images, draws and seeds."""
    found = [(int(rows["maps"].max()), check) for check, rows in table.groupby("check", sort=False)]
    if len({maps for maps, _ in found}) == 1:
        return str(found[0][0])
    counts = {maps: "labels" if check == "labels" else "layers" for maps, check in found}
    return " or ".join(f"{maps} ({what})" for maps, what in counts.items())
