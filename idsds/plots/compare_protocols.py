"""Comparison of protocols: the methods' ranks, the protocols' agreement, and the accuracy of their nets."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from idsds.plots.finetune import draw_accuracies, kind_handles, top5_said
from idsds.plots.style import COLUMNS, add_legend, drawn_from, handles_of, look_of, panel_grid, scored_on, styled


@styled
def compare_protocols(
    places: pd.DataFrame, agreed: pd.DataFrame, shares: pd.DataFrame, families: Mapping[str, str], *, columns: int = 2
) -> Figure:
    """Draw one row per model: (a) methods' ranks by protocol as parallel axes, (b) Kendall's tau between protocols, (c) accuracies.

    Args:
        places: from :func:`idsds.statistics.rank_each` by ``label``: model, label, method, place, place_low, place_high.
        agreed: from :func:`idsds.statistics.rank_agreement`: model, first, second, tau, tau_low, tau_high.
        shares: model, seed, stage, images, accuracy, low, high, top5, count.
    """
    models = list(dict.fromkeys(places["model"]))
    figure, grid = panel_grid(len(models), 3, COLUMNS[columns], 0.75 + 2.55 * len(models), width_ratios=[2.9, 3.1, 1.05])
    for row, model in zip(grid, models, strict=True):
        _places(row[0], places[places["model"] == model], families)
        _matrix(row[1], agreed[agreed["model"] == model])
        _accuracies(row[2], shares[shares["model"] == model])
        row[0].set_title(f"{model}", loc="left", fontsize=8, fontweight="bold")
    counts = sorted({int(count) for count in places["count"] + places["nan"]})
    n, over = " or ".join(map(str, counts)), drawn_from(places)
    for axes, text in zip(grid[0], "abc", strict=True):
        look = {"fontweight": "bold", "fontsize": 9, "textcoords": "offset points", "xycoords": "axes fraction"}
        axes.annotate(text, (0, 1), xytext=(-20, 12), **look)
    handles = handles_of(dict.fromkeys(places["method"]), families)
    title = f"n = {n} {scored_on(places)}; bars and small numbers: 95 % over {over} (bootstrap; c: Wilson)"
    add_legend(figure, handles, len(handles) if columns == 2 else 3, title=title)
    return figure


def short(label: str) -> str:
    """Return a protocol's name on two or three lines."""
    return label.replace(", updated", ",\nupd.").replace(" first", "\nfirst")


def _places(axes: Axes, table: pd.DataFrame, families: Mapping[str, str]) -> None:
    labels, methods = list(dict.fromkeys(table["label"])), list(dict.fromkeys(table["method"]))
    for number, method in enumerate(methods):
        look = look_of(method, families[method])
        rows = table[table["method"] == method].set_index("label").reindex(labels)
        # Side by side, because intervals of one colour would hide each other.
        x = np.arange(len(labels)) + (number - (len(methods) - 1) / 2) * 0.07
        axes.plot(x, rows["place"], color=look.colour, linewidth=0.7, alpha=0.5, zorder=1)
        axes.vlines(x, rows["place_low"], rows["place_high"], color=look.colour, linewidth=1.0, zorder=2)
        axes.plot(x, rows["place"], **look.line(4.5, linestyle="", zorder=3))
    last, first = (table[table["label"] == label].dropna(subset="place").sort_values("place") for label in (labels[-1], labels[0]))
    for rows, at, side in ((first, -0.38, "right"), (last, len(labels) - 1 + 0.38, "left")):
        for place, row in enumerate(rows.itertuples(), start=1):  # ties take neighbouring lines
            axes.text(at, place, row.method, ha=side, va="center", fontsize=6.5)
    axes.set_ylim(len(methods) + 0.6, 0.4)
    axes.set_xlim(-0.35, len(labels) - 1 + 0.35)
    axes.set_xticks(range(len(labels)), [short(label) for label in labels], fontsize=5.5)
    axes.set_yticks([])
    axes.set_ylabel("rank among the methods, best on top ↑", fontsize=7, labelpad=48)
    axes.spines["left"].set_visible(False)


def _matrix(axes: Axes, agreed: pd.DataFrame) -> None:
    labels = list(dict.fromkeys([*agreed["first"], *agreed["second"]]))
    intervals = [f"{row.tau_low:.2f}, {row.tau_high:.2f}".replace("0.", ".").replace("-.00", ".00") for row in agreed.itertuples()]
    agreed = agreed.assign(text=agreed["tau"].map("{:.2f}\n".format) + intervals)
    values, texts = (agreed.pivot(index="second", columns="first", values=name).reindex(labels, columns=labels) for name in ("tau", "text"))
    names = [short(label) for label in labels]
    looks = {"cmap": "Greys", "vmin": -1, "vmax": 3, "cbar": False, "annot_kws": {"fontsize": 5.2, "color": "black"}}
    sns.heatmap(values, annot=texts, fmt="", xticklabels=names, yticklabels=names, ax=axes, **looks)
    axes.set(xlabel="", ylabel="")
    axes.tick_params(length=0, labelsize=5.5)
    axes.tick_params(axis="x", rotation=90)
    axes.tick_params(axis="y", rotation=0)
    axes.set_title("Kendall's tau, higher agrees more;\ndiagonal: with itself, halves of the images", fontsize=6.5)


def _accuracies(axes: Axes, shares: pd.DataFrame) -> None:
    draw_accuracies(axes, shares, 100, 4.5)
    axes.tick_params(axis="x", labelsize=6.5)
    said = top5_said(shares).replace(": ", ":\n")  # the panel is narrow
    axes.set_xlabel(f"in-domain fine-tuning\n{said}".strip(), fontsize=6.5)
    axes.set_ylabel("accuracy in %, higher is better ↑", fontsize=7)
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "handlelength": 2.2, "borderpad": 0}
    axes.legend(handles=kind_handles(4.5), fontsize=5.5, frameon=False, **place)
