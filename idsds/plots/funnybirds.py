"""A row of panels per net: every FunnyBirds protocol and their mean, for all methods."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from idsds.plots.style import COLUMNS, PUBLISHED, STYLE, add_legend, handles_of, look_of

#: The panels: measure and title.
PANELS = {
    "csdc": "CSDC",
    "pc": "preservation\n(PC)",
    "dc": "deletion\n(DC)",
    "distractibility": "distracti-\nbility (D)",
    "correctness": "correctness\n(SD)",
    "contrastivity": "contrastivity\n(TS)",
    "mean": "mean of the\nthree",
    "shapley": "exact\nShapley",
}


def funnybirds(table: pd.DataFrame, nets: pd.DataFrame, published: pd.DataFrame, *, columns: int = 2) -> Figure:
    """Draw every measure with its interval, methods ordered by the mean.

    Args:
        table: model, method, family, measure, value, low, high, threshold, chosen_on (which images chose it), interval (what it covers).
        nets: model, measure, value, low, high of what depends on no method.
        published: model, method, measure, published; empty if there is none.
        columns: width of the figure, in columns of a paper; with 1 the four checks are left out.
    """
    shown = [name for name in PANELS if columns == 2 or name not in ("csdc", "pc", "dc", "distractibility")]
    models = list(dict.fromkeys(table["model"]))
    methods = table.groupby("model")["method"].nunique().max()
    height = len(models) * (0.17 * methods + 0.75) + 1.2
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=(COLUMNS[columns], height), layout="constrained")
        for part, model in zip(np.atleast_1d(figure.subfigures(len(models), 1)), models, strict=True):
            row = part.subplots(1, len(shown), sharey=True, squeeze=False)[0]
            _row(row, shown, table[table["model"] == model], published[published["model"] == model] if len(published) else published)
            of_net = nets[nets["model"] == model].set_index("measure")
            said = ", ".join(f"{name.replace('_', ' ').replace('top5', 'top-5')} {of_net['value'][name]:.3f}" for name in of_net.index)
            part.suptitle(f"{model}: {said}" if columns == 2 else model, x=0.01, ha="left", fontsize=8, fontweight="bold")
        families = dict(zip(table["method"], table["family"], strict=True))
        handles = handles_of(families, families)
        if len(published):
            mark = {"linestyle": "", "marker": "o", "color": PUBLISHED, "markerfacecolor": "none", "markersize": 6}
            handles.append(Line2D([], [], label="published", **mark))
        add_legend(figure, handles, 4 if columns == 2 else 2)
        where = f"t: threshold, chosen for each method on {table['chosen_on'].iloc[0]}"
        bars = f"bars: {table['interval'].iloc[0].split(',')[0]}"
        figure.supxlabel(f"score, higher is better →\n{bars}\n{where}", fontsize=7)
    return figure


def _row(row: np.ndarray, shown: list[str], table: pd.DataFrame, published: pd.DataFrame) -> None:
    means = table[table["measure"] == "mean"].sort_values("value", na_position="first")
    place = {method: number for number, method in enumerate(means["method"])}
    labels = [f"{method}, t = {t:.2f}" for method, t in zip(means["method"], means["threshold"], strict=True)]
    for axes, measure in zip(row, shown, strict=True):
        _panel(axes, table[table["measure"] == measure], place)
        axes.text(0.5, 1.02, PANELS[measure], transform=axes.transAxes, ha="center", va="bottom", fontsize=6.5)
        for found in published[published["measure"] == measure].itertuples() if len(published) else ():
            marker = look_of(found.method).marker
            axes.plot(found.published, place[found.method], marker=marker, color=PUBLISHED, markerfacecolor="none", markersize=7, zorder=4)
    row[0].set_yticks(range(len(place)), labels, fontsize=6.5)
    row[0].set_ylim(-0.7, len(place) - 0.3)


def _panel(axes: Axes, rows: pd.DataFrame, place: dict[str, int]) -> None:
    axes.grid(axis="x", color="#E4E4E4", linewidth=0.5)
    axes.set_axisbelow(True)
    for row in rows.itertuples():
        look = look_of(row.method, row.family)
        axes.hlines(place[row.method], row.low, row.high, color=look.ink, linewidth=1)
        axes.plot(row.value, place[row.method], **look.line(4.5, linestyle="", zorder=3), clip_on=False)
    signed = set(rows["measure"]) == {"shapley"}
    axes.set_xlim(-1.1 if signed else -0.05, 1.05)
    axes.set_xticks([-1, 0, 1] if signed else [0, 0.5, 1], ["-1", "0", "1"] if signed else ["0", ".5", "1"], fontsize=6.5)
    axes.tick_params(axis="y", length=0)
