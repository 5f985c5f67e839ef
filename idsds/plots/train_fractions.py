"""The quality of models trained on fractions of the training images."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from idsds.plots.architectures import architecture_handles, face_of, looks_of
from idsds.plots.style import COLUMNS, add_legend, mixed, panel_grid, styled
from idsds.statistics.classification import EXCESS

FEW = 20  # classes, up to which they are counted in the cells

# Column, what its axis is called, and what it is multiplied by.
ROWS = [
    ("accuracy", "accuracy (0 to 1)\nhigher is better →"),
    ("macro_f1", "macro F1\n(\N{MULTIPLICATION SIGN}: weighted)\nhigher is better →"),
    (EXCESS, "weighted precision\n\N{MINUS SIGN} accuracy (percentage\npoints; 0: equal)"),
]
# Offsets in percent of the training images: between architectures, and between seeds of one.
BETWEEN, BESIDE = 4.0, 1.1


@styled
def train_fractions(table: pd.DataFrame, *, columns: int = 2) -> Figure:
    """Draw a column of panels per data set: accuracy, macro F1, and weighted precision minus accuracy, by fraction of the images.

    Args:
        table: dataset, model, fraction, seed, accuracy, macro_f1,
            weighted_f1, weighted_precision, precision_excess, each with ``_low`` and ``_high``; count;
            ``top5``, whose range stands in the titles.
    """
    table = table.assign(**{name: 100 * table[name] for name in table if name.startswith(EXCESS)})
    datasets, looks = list(dict.fromkeys(table["dataset"])), looks_of(table["model"])
    seeds = table["seed"].nunique()
    width = COLUMNS[columns] if len(datasets) > 1 else COLUMNS[1]
    figure, grid = panel_grid(len(ROWS), len(datasets), width, 5.7, sharex=True, sharey="row", height_ratios=(3, 3, 2.4))
    for column, dataset in enumerate(datasets):
        for row, (measure, label) in enumerate(ROWS):
            axes = grid[row, column]
            for number, (model, look) in enumerate(looks.items()):
                rows = table[(table["dataset"] == dataset) & (table["model"] == model)]
                shift = BETWEEN * (number - (len(looks) - 1) / 2)
                _series(axes, rows, measure, look, shift)
                if measure == "macro_f1" and "weighted_f1" in rows:
                    weighted = rows.groupby("fraction")["weighted_f1"].mean()
                    axes.plot(100 * weighted.index + shift, weighted, "x", color=look[1], markersize=4, markeredgewidth=0.7, zorder=3)
            axes.grid(axis="y", color="#DDDDDD", linewidth=0.5)
            if column == 0:
                axes.set_ylabel(label)
        here = table[table["dataset"] == dataset]
        near = f"\ntop-5: {here['top5'].min():.3f} to {here['top5'].max():.3f}" if "top5" in here else ""
        grid[0, column].set_title(f"{dataset}, n = {_extent(here['count'])}{near}", fontsize=8)
        grid[2, column].axhline(0, color="#888888", linewidth=0.6)
        shares = sorted(set(100 * table["fraction"]))
        grid[2, column].set_xticks(shares, [f"{share:.0f}" for share in shares])
        grid[2, column].set_xlabel("fraction of the training images (%)")
    then = ", " if width > COLUMNS[1] else ",\n"  # a narrow figure has narrow lines
    over = f"pale marks: the {seeds} training seeds one by one{then}line and mark: their mean" if seeds > 1 else "one training seed"
    bars = f"bars: 95 % interval over the n test images{then}one model each (of the difference: paired)"
    handles, ncols = architecture_handles(table["model"]), len(looks) if width > COLUMNS[1] else 2
    legend = add_legend(figure, handles, ncols, handlelength=3.6, title=f"{bars}\n{over}")
    legend.get_title().set_multialignment("center")
    return figure


@styled
def confusions(table: pd.DataFrame, *, columns: int = 2) -> Figure:
    """Draw a confusion matrix per data set and architecture, for the models with the most training images, over all seeds.

    Args:
        table: dataset, model, fraction, seed, target, prediction, count.
    """
    table = table[table["fraction"] == table["fraction"].max()]
    datasets, models = (list(dict.fromkeys(table[name])) for name in ("dataset", "model"))
    width = COLUMNS[columns]
    side = min(width / len(models), 2.8)  # inches
    figure, grid = panel_grid(len(datasets), len(models), width, 0.8 + (side + 0.2) * len(datasets))
    for row, dataset in enumerate(datasets):
        for axes, model in zip(grid[row], models, strict=True):
            part = table[(table["dataset"] == dataset) & (table["model"] == model)]
            classes = sorted({*part["target"], *part["prediction"]})
            counts = part.pivot_table(index="target", columns="prediction", values="count", aggfunc="sum", fill_value=0)
            counts = counts.reindex(index=classes, columns=classes, fill_value=0)
            shares = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
            said = counts.astype(str).replace("0", "") if len(classes) <= FEW else None
            size = {"fontsize": min(6, 18 * side / len(classes))}
            sns.heatmap(shares, vmin=0, vmax=1, cmap="cividis", cbar=False, square=True, annot=said, fmt="", annot_kws=size, ax=axes)
            seeds = part["seed"].nunique()
            over = "one training seed" if seeds == 1 else f"{seeds} training seeds"
            axes.set_title(f"{dataset}, {model}\n{np.trace(counts) / counts.to_numpy().sum():.1%} right, {over}", fontsize=7)
            axes.set_xlabel("predicted class" if row == len(datasets) - 1 else "")
            axes.set_ylabel("class of the image" if model == models[0] else "")
            axes.tick_params(rotation=0)
    bar = figure.colorbar(axes.collections[0], ax=grid, location="bottom", shrink=0.5, aspect=40, pad=0.02)
    bar.set_label("fraction of the class's images; numbers: images", fontsize=7)
    return figure


def _series(axes: mpl.axes.Axes, rows: pd.DataFrame, measure: str, look: tuple[str, str, str], shift: float) -> None:
    """Draw one architecture on one data set: a mark per model, side by side by seed; for several seeds, their means and a line."""
    marker, colour, line = look
    seeds = sorted(set(rows["seed"]))
    single = len(seeds) == 1
    pale = colour if single else mixed(colour, 0.4)
    for place, seed in enumerate(seeds):
        some = rows[rows["seed"] == seed]
        x = 100 * some["fraction"] + shift + BESIDE * (place - (len(seeds) - 1) / 2)
        if f"{measure}_low" in some:
            errors = [some[measure] - some[f"{measure}_low"], some[f"{measure}_high"] - some[measure]]
            axes.errorbar(x, some[measure], errors, color=pale, linestyle="", elinewidth=0.7, zorder=1.5)
        if not single:
            axes.plot(x, some[measure], marker, color=pale, markersize=1.8, markerfacecolor=face_of(marker, pale), markeredgewidth=0.6)
    means = rows.groupby("fraction")[measure].mean()
    axes.plot(100 * means.index + shift, means, color=colour, linestyle=line, linewidth=1)
    axes.plot(100 * means.index + shift, means, marker, color=colour, markersize=3.5, markerfacecolor=face_of(marker, colour))


def _extent(counts: pd.Series) -> str:
    return f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
