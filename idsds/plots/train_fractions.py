"""The quality of models that were trained on shares of the training images."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from idsds.plots.architectures import _face, architecture_handles, looks_of
from idsds.plots.style import COLUMNS, STYLE, mixed
from idsds.statistics.classification import EXCESS

# Column, what its axis is called, and what it is multiplied by.
ROWS = [
    ("accuracy", "accuracy (0 to 1)\nhigher is better →"),
    ("macro_f1", "macro F1 (0 to 1)\nhigher is better →"),
    (EXCESS, "weighted precision\n\N{MINUS SIGN} accuracy (percentage\npoints; 0: alike)"),
]
# In percent of the training images: between two architectures, and between two seeds of one.
BETWEEN, BESIDE = 4.0, 1.1


def train_fractions(table: pd.DataFrame, *, columns: int = 2) -> Figure:
    """Draw a column of panels per data set: accuracy, macro F1, and weighted precision minus accuracy, by share of the images.

    Args:
        table: from :func:`idsds.studies.train_fractions.quality`: dataset, model, fraction, seed, accuracy, macro_f1,
            weighted_precision, precision_excess, each with ``_low`` and ``_high``; count.
        columns: width of the figure, in columns of a paper.
    """
    ends = [name for name in (EXCESS, f"{EXCESS}_low", f"{EXCESS}_high") if name in table]
    table = table.assign(**{name: 100 * table[name] for name in ends})
    datasets, looks = list(dict.fromkeys(table["dataset"])), looks_of(table["model"])
    seeds = table["seed"].nunique()
    with mpl.rc_context(STYLE):
        width = COLUMNS[columns] if len(datasets) > 1 else COLUMNS[1]
        figure, grid = plt.subplots(
            len(ROWS),
            len(datasets),
            figsize=(width, 5.7),
            sharex=True,
            sharey="row",
            squeeze=False,
            layout="constrained",
            height_ratios=(3, 3, 2.4),
        )
        for column, dataset in enumerate(datasets):
            for row, (measure, label) in enumerate(ROWS):
                axes = grid[row, column]
                for number, (model, look) in enumerate(looks.items()):
                    rows = table[(table["dataset"] == dataset) & (table["model"] == model)]
                    _series(axes, rows, measure, look, BETWEEN * (number - (len(looks) - 1) / 2))
                axes.grid(axis="y", color="#DDDDDD", linewidth=0.5)
                if column == 0:
                    axes.set_ylabel(label)
            counts = table.loc[table["dataset"] == dataset, "count"]
            grid[0, column].set_title(f"{dataset}, n = {_extent(counts)}", fontsize=8)
            grid[2, column].axhline(0, color="#888888", linewidth=0.6)
            shares = sorted(set(100 * table["fraction"]))
            grid[2, column].set_xticks(shares, [f"{share:.0f}" for share in shares])
            grid[2, column].set_xlabel("share of the training images (%)")
        then = ", " if width > COLUMNS[1] else ",\n"  # a narrow figure has narrow lines
        over = f"pale marks: the {seeds} training seeds one by one{then}line and mark: their mean" if seeds > 1 else "one training seed"
        bars = f"bars: 95 % interval over the n test images{then}one model each (of the difference: paired)"
        legend = figure.legend(
            handles=architecture_handles(table["model"]),
            loc="outside upper center",
            ncols=len(looks) if width > COLUMNS[1] else 2,
            frameon=False,
            fontsize=7,
            handlelength=3.6,
            title=f"{bars}\n{over}",
            title_fontsize=7,
        )
        legend.get_title().set_multialignment("center")
    return figure


def _series(axes: mpl.axes.Axes, rows: pd.DataFrame, measure: str, look: tuple[str, str, str], shift: float) -> None:
    """One architecture on one data set: a mark per model, side by side by seed; of several seeds their means and a line."""
    marker, colour, line = look
    seeds = sorted(set(rows["seed"]))
    means = rows.groupby("fraction")[measure].mean()
    single = len(seeds) == 1
    pale = colour if single else mixed(colour, 0.4)
    for place, seed in enumerate(seeds):
        some = rows[rows["seed"] == seed]
        x = 100 * some["fraction"] + shift + BESIDE * (place - (len(seeds) - 1) / 2)
        if f"{measure}_low" in some:
            errors = [some[measure] - some[f"{measure}_low"], some[f"{measure}_high"] - some[measure]]
            axes.errorbar(x, some[measure], errors, color=pale, linestyle="", elinewidth=0.7, zorder=1.5)
        if not single:
            axes.plot(x, some[measure], marker, color=pale, markersize=1.8, markerfacecolor=_face(marker, pale), markeredgewidth=0.6)
    axes.plot(100 * means.index + shift, means, color=colour, linestyle=line, linewidth=1)
    axes.plot(100 * means.index + shift, means, marker, color=colour, markersize=3.5, markerfacecolor=_face(marker, colour))


def _extent(counts: pd.Series) -> str:
    return f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
