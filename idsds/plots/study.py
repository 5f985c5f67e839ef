"""How good models are that were trained on shares of the training images."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from idsds.models import MODELS
from idsds.plots.style import COLUMNS, STYLE

#: Marker, colour and line of each architecture, in the order in which they are given.
ARCHITECTURES = [("o", "#0072B2", "-"), ("s", "#D55E00", "--"), ("^", "#009E73", "-."), ("D", "#CC79A7", ":"), ("v", "#000000", "-")]

# Column, what its axis is called, and what it is multiplied by.
ROWS = [
    ("accuracy", "accuracy\nhigher is better →"),
    ("macro_f1", "macro F1\nhigher is better →"),
    ("above", "weighted precision\n\N{MINUS SIGN} accuracy (points)"),
]


def looks_of(models: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Marker, colour and line by architecture; a small net looks like the large one of its family."""
    models = list(dict.fromkeys(models))
    families = {model: MODELS[model].family if model in MODELS else model for model in models}
    sizes = {model: model.startswith("mini_") for model in models}
    looks: dict[str, int] = {}
    for model in models:
        alike = [other for other in looks if families[other] == families[model] and sizes[other] != sizes[model]]
        looks[model] = looks[alike[0]] if alike else max(looks.values(), default=-1) + 1
    return {model: ARCHITECTURES[number % len(ARCHITECTURES)] for model, number in looks.items()}


def architecture_handles(models: Sequence[str], *, lines: bool = True) -> list[Line2D]:
    """The entries of the architectures in a legend, one for those that look alike."""
    named: dict[tuple[str, str, str], list[str]] = {}
    for model, look in looks_of(models).items():
        named.setdefault(look, []).append(model)
    return [
        Line2D([], [], marker=marker, color=colour, linestyle=line if lines else "", markersize=4, label=", ".join(alike))
        for (marker, colour, line), alike in named.items()
    ]


def train_fractions(table: pd.DataFrame, *, columns: int = 2) -> Figure:
    """A column of panels per data set: accuracy, macro F1, and how far weighted precision is above accuracy, by share of the images.

    Args:
        table: from :func:`idsds.study.quality`: dataset, model, fraction, seed, accuracy, macro_f1, weighted_precision, each with
            ``_low`` and ``_high``.
        columns: width of the figure, in columns of a paper.
    """
    table = table.assign(above=100 * (table["weighted_precision"] - table["accuracy"]))
    datasets, looks = list(dict.fromkeys(table["dataset"])), looks_of(table["model"])
    seeds = table["seed"].nunique()
    with mpl.rc_context(STYLE):
        width = COLUMNS[columns] if len(datasets) > 1 else COLUMNS[1]
        figure, grid = plt.subplots(
            len(ROWS),
            len(datasets),
            figsize=(width, 5.4),
            sharex=True,
            sharey="row",
            squeeze=False,
            layout="constrained",
            height_ratios=(3, 3, 2),
        )
        for column, dataset in enumerate(datasets):
            for row, (measure, label) in enumerate(ROWS):
                axes = grid[row, column]
                for number, (model, look) in enumerate(looks.items()):
                    rows = table[(table["dataset"] == dataset) & (table["model"] == model)]
                    _series(axes, rows, measure, look, 1.2 * (number - (len(looks) - 1) / 2))
                axes.grid(axis="y", color="#DDDDDD", linewidth=0.5)
                if column == 0:
                    axes.set_ylabel(label)
            grid[0, column].set_title(dataset, fontsize=8)
            grid[2, column].axhline(0, color="#888888", linewidth=0.6)
            shares = sorted(set(100 * table["fraction"]))
            grid[2, column].set_xticks(shares, [f"{share:.0f}" for share in shares])
            grid[2, column].set_xlabel("share of the training images (%)")
        over = "line: mean of the training seeds" if seeds > 1 else "one training seed"
        figure.legend(
            handles=architecture_handles(table["model"]),
            loc="outside upper center",
            ncols=len(looks),
            frameon=False,
            fontsize=7,
            title=f"bars: 95 % interval over n = {int(table['count'].min())} or more test images, one model each; {over}",
            title_fontsize=7,
        )
    return figure


def _series(axes: mpl.axes.Axes, rows: pd.DataFrame, measure: str, look: tuple[str, str, str], shift: float) -> None:
    """One architecture on one data set: a marker per model, a line through the means over seeds."""
    marker, colour, line = look
    means = rows.groupby("fraction")[measure].mean()
    axes.plot(100 * means.index + shift, means, color=colour, linestyle=line, linewidth=1)
    x = 100 * rows["fraction"] + shift
    if f"{measure}_low" in rows:
        errors = [rows[measure] - rows[f"{measure}_low"], rows[f"{measure}_high"] - rows[measure]]
        axes.errorbar(x, rows[measure], errors, color=colour, linestyle="", elinewidth=0.7)
    axes.plot(x, rows[measure], marker, color=colour, markersize=3.5, markerfacecolor="white" if marker == "s" else colour)
