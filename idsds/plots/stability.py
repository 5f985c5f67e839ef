"""Four panels: IDSDS by training seed, baseline, grid and number of images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from idsds.plots.parallel_axes import spread as spread_out
from idsds.plots.style import COLUMNS, add_legend, handles_of, look_of, panel_grid, styled

_NAMES = {"seed": "training seed", "baseline": "baseline", "grid": "patches per side", "images": "number of images"}


@styled
def stability(table: pd.DataFrame, agreed: pd.DataFrame, families: Mapping[str, str], *, score: str = "IDSDS", columns: int = 2) -> Figure:
    """Draw the mean IDSDS of every method, a panel for each varied setting, with Kendall's tau to the reference above.

    Args:
        table: kind, variant, method, mean, low, high, one row per variant of a setting and method.
        agreed: kind, first, second, mean, low, high: the agreement of two variants' rankings.
    """
    methods = list(table[table["variant"] != "all"].groupby("method")["mean"].mean().sort_values(ascending=False).index)
    figure, grid = panel_grid(2, 2, COLUMNS[columns], 5.4, sharey=True)
    for number, (kind, axes) in enumerate(zip(_NAMES, grid.flat, strict=True)):
        _panel(axes, table[table["kind"] == kind], agreed[agreed["kind"] == kind], kind, methods, families)
        axes.set_title("abcd"[number], loc="left", fontsize=9, fontweight="bold")
    for row in grid:
        row[0].set_ylabel(f"{score}: mean rank correlation,\nhigher is better ↑", fontsize=7)
    handles = handles_of(methods, families)
    handles.append(Line2D([], [], color="#444444", linewidth=1, label="95 % over images ('all': over seeds and images)"))
    add_legend(figure, handles, 4 if columns == 2 else 2)
    return figure


def _panel(axes: Axes, table: pd.DataFrame, agreed: pd.DataFrame, kind: str, methods: list[str], families: Mapping[str, str]) -> None:
    variants = list(dict.fromkeys(table["variant"]))
    if kind in ("grid", "images"):
        variants.sort(key=int)
    spread = 0.5 / max(1, len(methods) - 1)
    for number, method in enumerate(methods):
        look = look_of(method, families[method])
        rows = table[table["method"] == method].set_index("variant").reindex(variants)
        x = np.arange(len(variants)) + (number - (len(methods) - 1) / 2) * spread
        joined = [i for i, name in enumerate(variants) if name != "all"]  # the mean over seeds is not another seed
        axes.plot(x[joined], rows["mean"].iloc[joined], color=look.colour, linewidth=0.6, alpha=0.5, zorder=1)
        axes.vlines(x, rows["low"], rows["high"], color=look.colour, linewidth=1, zorder=2)
        axes.plot(x, rows["mean"], **look.line(4, linestyle="", zorder=3))
    axes.plot([-0.5, len(variants) - 0.7], [0, 0], color="#888888", linewidth=0.6, zorder=0)
    axes.set_xticks(range(len(variants)), [f"{name}\n{_tau(agreed, kind, name)}" for name in variants], fontsize=6.5)
    axes.set_xlim(-0.5, len(variants) - 0.5 + 0.28 * len(variants))
    low, high = table["low"].min() - 0.05, min(1.0, table["high"].max()) + 0.05
    last = table[table["variant"] == variants[-1]].dropna(subset="mean").sort_values("mean")
    places = spread_out(last["mean"].to_numpy(), 0.065 * (high - low), low, high)
    for row, at in zip(last.itertuples(), places, strict=True):
        axes.plot([len(variants) - 0.7, len(variants) - 0.55], [row.mean, at], color="#999999", linewidth=0.4)
        axes.text(len(variants) - 0.52, at, row.method, va="center", fontsize=6)
    what = "the other images'" if kind == "images" else "the reference's"
    axes.set_xlabel(f"{_NAMES[kind]} (tau: with {what} ranking)", fontsize=7)


def _tau(agreed: pd.DataFrame, kind: str, variant: str) -> str:
    """Write Kendall's tau of a variant with the reference, and its interval."""
    reference = None if kind == "images" or agreed.empty else agreed["first"].iloc[0]
    if variant == reference:
        return "reference"
    pair = agreed["first"] == variant if kind == "images" else (agreed["first"] == reference) & (agreed["second"] == variant)
    rows = agreed[pair].dropna(subset="tau")
    if rows.empty:
        return ""
    row = rows.iloc[0]
    return f"tau {row['tau']:.2f}\n[{row['tau_low']:.2f}, {row['tau_high']:.2f}]"
