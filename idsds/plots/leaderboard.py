"""The leaderboard: every method with its interval and its costs, and beside it quality against cost with the front."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from idsds.plots.parallel_axes import CEILING, REPEATED, handles_of_axes, spread
from idsds.plots.style import COLUMNS, PUBLISHED, STYLE, add_legend, family_of, look_of, scored_on
from idsds.published import REPRODUCTION
from idsds.statistics import null_band

ROW = 0.118  # inches per method
SMALL = 5.5  # points


def leaderboard(
    table: pd.DataFrame,
    families: Mapping[str, str],
    *,
    n_patches: int = 16,
    score: str = "IDSDS",
    where: str = "",
    columns: int = 2,
    published: pd.DataFrame | None = None,
) -> Figure:
    """Draw for each model all methods, the best on top, and their quality against milliseconds per image.

    Args:
        table: model, method, mean, low, high, count, nan, interval, ceiling, control, as_good, milliseconds, megabytes, front.
        families: family of each method that is not in the registry.
        published: from :func:`idsds.published.compare`.
    """
    shown = table[table["mean"].notna()]
    models = list(dict.fromkeys(shown["model"]))
    tall = [ROW * (len(shown[shown["model"] == model]) + 3) for model in models]
    beside = columns == 2
    heights = [max(height, 2.4) for height in tall] if beside else [part for height in tall for part in (height, 2.4)]
    shape = (len(models), 2) if beside else (2 * len(models), 1)
    ratios = {"height_ratios": heights, **({"width_ratios": [1.0, 0.95]} if beside else {})}
    with mpl.rc_context(STYLE):
        size = (COLUMNS[columns], sum(heights) + 0.55 * len(heights) + 0.5)
        figure, grid = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained", gridspec_kw=ratios)
        panels = grid.reshape(-1, 2)
        for (left, right), model in zip(panels, models, strict=True):
            rows = _ordered(shown[shown["model"] == model])
            known = None if published is None else published[published["model"] == model]
            _ranking(left, rows, families, n_patches, known)
            _against_cost(right, rows, families)
            counts = f"n = {rows['count'].max()} {scored_on(rows)}"
            left.set_title(f"{model}, {counts}", loc="left", fontsize=8, fontweight="bold")
            left.set_xlabel(f"{score}, mean rank correlation\n(-1 to 1), higher is better →", fontsize=7)
            right.set_xlabel("milliseconds per image, lower is better ←", fontsize=7)
            right.set_ylabel(f"{score}, higher is better ↑", fontsize=7)
        title = {"title": where[:1].upper() + where[1:] or None, "title_fontsize": 6.5, "alignment": "left"}
        add_legend(figure, _handles(shown, families, published), 3 if beside else 1, loc="outside upper left", fontsize=6, **title)
    return figure


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    """Sort the rows: upper bounds first, then the best on top."""
    return rows.assign(apart=~rows["ceiling"].astype(bool)).sort_values(["apart", "mean"], ascending=[True, False], kind="stable")


def _ranking(axes: Axes, rows: pd.DataFrame, families: Mapping[str, str], n_patches: int, published: pd.DataFrame | None) -> None:
    ceilings = int(rows["ceiling"].sum())
    places = np.arange(len(rows)) + np.where(np.arange(len(rows)) >= ceilings, 1.2 if ceilings else 0.0, 0.0)
    band = null_band(n_patches, int(rows["count"].max()))
    axes.axvspan(-band, band, color="#DDDDDD", linewidth=0, zorder=0)
    if ceilings:
        axes.axhline(ceilings + 0.1, color="#AAAAAA", linewidth=0.5, linestyle="--")
    for place, row in zip(places, rows.itertuples(), strict=True):
        look = look_of(row.method, family_of(row.method, dict(families)))
        axes.plot([row.low, row.high], [place, place], color=look.colour, linewidth=1.0, zorder=2)
        axes.plot(row.mean, place, linestyle="", zorder=3, **look.line(3.6))
        for known in () if published is None else published[published["method"] == row.method].itertuples():
            face = REPEATED if known.source == REPRODUCTION else "white"
            mark = {"marker": look.marker, "markersize": 3.6, "markeredgecolor": PUBLISHED, "markerfacecolor": face}
            axes.plot(known.published, place, linestyle="", zorder=2.5, **mark)
        for x, text in ((1.1, _number(row.milliseconds)), (1.22, _number(row.megabytes))):
            axes.text(x, place, text, transform=axes.get_yaxis_transform(), fontsize=SMALL, ha="right", va="center", clip_on=False)
    for x, text in ((1.1, "ms"), (1.22, "MB")):
        axes.text(x, -1.3, text, transform=axes.get_yaxis_transform(), fontsize=SMALL, ha="right", va="center", color="#555555")
    axes.set_ylim(places[-1] + 0.8, -1.9)
    axes.set_yticks(places, [_label(row) for row in rows.itertuples()], fontsize=SMALL, parse_math=False)
    for tick, row in zip(axes.get_yticklabels(), rows.itertuples(), strict=True):
        tick.set_fontweight("bold" if row.as_good else "normal")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=6.5)
    axes.spines["left"].set_visible(False)


def _label(row: object) -> str:
    undefined = f" ({row.nan} undefined)" if row.nan else ""  # type: ignore[attr-defined]
    return f"{row.method}{CEILING if row.ceiling else ''}{undefined}"  # type: ignore[attr-defined]


def _number(value: float) -> str:
    """Format with two digits, without an exponent; empty for NaN."""
    return "" if np.isnan(value) else f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _against_cost(axes: Axes, rows: pd.DataFrame, families: Mapping[str, str]) -> None:
    rows = rows[~rows["ceiling"].astype(bool) & ~rows["control"] & (rows["milliseconds"] > 0)]
    for row in rows.itertuples():
        look = look_of(row.method, family_of(row.method, dict(families)))
        axes.plot([row.milliseconds] * 2, [row.low, row.high], color=look.colour, linewidth=0.5, alpha=0.4, zorder=1)
        axes.plot(row.milliseconds, row.mean, linestyle="", zorder=3, alpha=1.0 if row.front else 0.55, **look.line(4.2))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    if rows.empty:
        return
    front = rows[rows["front"]].sort_values("milliseconds")
    x = [*front["milliseconds"], rows["milliseconds"].max()]
    axes.step(x, [*front["mean"], front["mean"].iloc[-1]], where="post", color="#444444", linewidth=0.8, zorder=2)
    low, high = axes.get_ylim()
    fastest, slowest = axes.get_xlim()
    decades = 10.0 ** np.arange(np.floor(np.log10(fastest)), np.ceil(np.log10(slowest)) + 1)
    axes.xaxis.set_major_locator(FixedLocator([*decades[(fastest <= decades) & (decades <= slowest)]]))
    axes.set_xlim(fastest / (slowest / fastest) ** 0.75, slowest)
    # What lies to the left of the front is empty: names go there, and lines from them cross nothing.
    front = front.sort_values("mean")
    heights = spread(front["mean"].to_numpy(float), 0.034 * (high - low), low, high)
    for at, row in zip(heights, front.itertuples(), strict=True):
        name = {"xytext": (0.01, at), "textcoords": axes.get_yaxis_transform(), "ha": "left", "va": "center", "fontsize": 6}
        arrow = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.4, "shrinkA": 1, "shrinkB": 2}
        axes.annotate(row.method, (row.milliseconds, row.mean), parse_math=False, arrowprops=arrow, **name)
    axes.tick_params(labelsize=6.5)


def _handles(shown: pd.DataFrame, families: Mapping[str, str], published: pd.DataFrame | None) -> list[Artist]:
    notes = [
        Line2D([], [], linestyle="", label="bold: not significantly below the best"),
        Line2D([], [], color="#444444", linewidth=0.8, label="front: nothing cheaper is as good"),
    ]
    known = None if published is None else published.assign(inferred=False)  # not marked here
    upper, lower = handles_of_axes(shown, shown, families, known, notes)
    return [*upper, *lower]
