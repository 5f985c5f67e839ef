"""Infidelity and max-sensitivity against the quality of models, and one image's infidelity step by step."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from idsds.infidelity_steps import Step
from idsds.infidelity_study import LEVELS
from idsds.plots.gallery import DIVERGING
from idsds.plots.study import architecture_handles, looks_of
from idsds.plots.style import COLUMNS, STYLE, STYLES, handle, style_of

# Measure, its axis, whether that is logarithmic.
SCATTER = [
    ("raw", "infidelity (squared logits)\n← lower is better", True),
    ("relative", "infidelity relative to a\nmap of zeros ← lower is better", False),
    ("sensitivity", "max-sensitivity\n← lower is better", True),
]
FOREST = {"raw": "infidelity", "normalised": "… map's scale out", "relative": "… logit's scale out too", "sensitivity": "max-sensitivity"}
STUDY = "#000000"


def infidelity_sensitivity(
    table: pd.DataFrame, correlations: pd.DataFrame, study: pd.DataFrame, study_correlations: pd.DataFrame, *, shown: str, columns: int = 2
) -> Figure:
    """Above, metrics of one method against accuracy, a column of panels per data set and one for the study; below, all correlations.

    Args:
        table: from :func:`idsds.infidelity_study.judge`.
        correlations: of it, from :func:`idsds.infidelity_study.correlations`.
        study: from :func:`idsds.infidelity_study.study_table`.
        study_correlations: of that.
        shown: the method of the upper panels.
        columns: width of the figure, in columns of a paper.
    """
    datasets = list(dict.fromkeys(table["dataset"]))
    part = table[table["method"] == shown]
    looks = looks_of([*part["model"], *study["model"]])
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=(COLUMNS[columns], 8.6), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(5.4, 3.2))
        grid = above.subplots(len(SCATTER), len(datasets) + 1, squeeze=False)
        for column, name in enumerate([*datasets, None]):
            rows = part[part["dataset"] == name] if name else study
            for axes, (measure, label, logarithmic) in zip(grid[:, column], SCATTER, strict=True):
                if measure not in rows:
                    axes.set_axis_off()
                    continue
                _scatter(axes, rows, "accuracy" if name else "weighted_precision", measure, looks)
                if logarithmic:
                    axes.set_yscale("log")
                if column == 0:
                    axes.set_ylabel(label)
            grid[-1, column].set_xlabel("accuracy →" if name else "weighted precision →")
            grid[0, column].set_title(f"{name}, {shown}" if name else "the study, Guided Backprop", fontsize=8)
        # The study has no relative infidelity: the legend stands in its place.
        handles = architecture_handles([*part["model"], *study["model"]], lines=False)
        grid[1, -1].legend(handles=handles, loc="center", frameon=False, fontsize=7, title="architecture", title_fontsize=7)
        _forest(below, correlations, study_correlations, table)
    return figure


def _scatter(axes: Axes, rows: pd.DataFrame, quality: str, measure: str, looks: dict[str, tuple[str, str, str]]) -> None:
    for model, (marker, colour, _) in looks.items():
        of_model = rows[rows["model"] == model]
        # The more training images, the darker.
        for row in of_model.itertuples():
            axes.plot(
                getattr(row, quality), getattr(row, measure), marker, color=colour, markersize=4, alpha=0.3 + 0.7 * row.fraction, mew=0
            )
    axes.grid(color="#E5E5E5", linewidth=0.4)


def _forest(figure: Figure, ours: pd.DataFrame, study: pd.DataFrame, table: pd.DataFrame) -> None:
    """A panel per level, a row per measure: each method's correlation with accuracy, and the study's."""
    families = dict(zip(table["method"], table["family"], strict=True))
    grid = figure.subplots(1, len(LEVELS), sharey=True, squeeze=False)[0]
    methods = list(dict.fromkeys(ours["method"]))
    for axes, level in zip(grid, LEVELS, strict=True):
        for place, measure in enumerate(FOREST):
            mine = ours[(ours["level"] == level) & (ours["measure"] == measure) & (ours["quality"] == "accuracy")].set_index("method")
            rows = [(mine.loc[name], style_of(name, families[name])) for name in methods if name in mine.index]
            theirs = study[(study["level"] == level) & (study["measure"] == measure) & (study["quality"] == "weighted_precision")]
            lanes = np.linspace(place - 0.36, place + 0.36, len(methods) + 1)
            for lane, (row, key) in zip(lanes, rows, strict=False):
                _, marker, colour, filled = STYLES[key]
                axes.plot([row.low, row.high], [lane, lane], color=colour, linewidth=0.8)
                axes.plot(row.spearman, lane, marker, color=colour, markersize=4, markerfacecolor=colour if filled else "white")
                if level == next(iter(LEVELS)):
                    axes.annotate(row.name, (-1.02, lane), fontsize=4.5, va="center", ha="left", color="#444444")
            for row in theirs.itertuples():
                axes.plot([row.low, row.high], [lanes[-1]] * 2, color=STUDY, linewidth=0.8)
                axes.plot(row.spearman, lanes[-1], "d", color=STUDY, markersize=4, markerfacecolor="white")
        axes.axvline(0, color="#888888", linewidth=0.6)
        axes.set_xlim(-1.05, 1.05)
        axes.set_yticks(range(len(FOREST)), list(FOREST.values()))
        axes.set_ylim(len(FOREST) - 0.5, -0.5)
        for border in range(1, len(FOREST)):
            axes.axhline(border - 0.5, color="#DDDDDD", linewidth=0.5)
        axes.set_title(level, fontsize=8)
        axes.set_xlabel("Spearman correlation with accuracy")
    used = [key for key in STYLES if key in {style_of(name, families[name]) for name in methods}]
    study_handle = Line2D([], [], marker="d", linestyle="", color=STUDY, markerfacecolor="white", markersize=5, label="the study")
    title = f"below 0: the better model has the better (lower) value; bars: {ours['interval'].iloc[0]}"
    handles = [*(handle(key) for key in used), study_handle]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=7, title=title, title_fontsize=7)


def infidelity_steps(steps: Sequence[Step], *, columns: int = 2) -> Figure:
    """A row per perturbation: what is taken from the image, what is left, what two maps foretell, and how wrong each map is.

    Args:
        steps: from :func:`idsds.infidelity_steps.explain_infidelity`.
        columns: width of the figure, in columns of a paper.
    """
    maps = list(steps[0].maps)
    with mpl.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(steps),
            4,
            figsize=(COLUMNS[columns], 0.6 + 1.45 * len(steps)),
            squeeze=False,
            layout="constrained",
            width_ratios=(1, 1, 1.5, 2.3),
        )
        for (left, middle, right, bars), step in zip(grid, steps, strict=True):
            scale = np.abs(step.taken).max() or 1.0
            left.imshow(step.taken, cmap=DIVERGING, vmin=-scale, vmax=scale)
            middle.imshow(step.picture.clip(0, 1))
            for axes in (left, middle):
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(True)
            left.set_ylabel(step.name)
            middle.set_xlabel(f"logit {step.logit:.1f} → {step.logit - step.changes[0]:.1f}", fontsize=7)
            for number, name in enumerate(step.predicted):
                marker, colour = ("o", "s")[number % 2], ("#0072B2", "#D55E00")[number % 2]
                right.plot(step.changes, step.predicted[name], marker, color=colour, markersize=2, alpha=0.6, mew=0, label=name)
            ends = [step.changes.min(), step.changes.max()]
            right.plot(ends, ends, color="#444444", linewidth=0.7)
            right.set_ylabel("map foretells", fontsize=7)
            place = np.arange(len(maps))
            values = [step.infidelity[name] for name in maps]
            best = [step.normalised[name] for name in maps]
            bars.barh(place - 0.18, values, 0.36, color="#0072B2", label="as it is")
            bars.barh(
                place + 0.18, best, 0.36, color="#FFFFFF", edgecolor="#0072B2", hatch="////", linewidth=0.6, label="scaled to its best"
            )
            bars.axvline(step.zero, color="#D55E00", linewidth=1, linestyle="--", label="map of zeros")
            bars.set_yticks(place, maps, fontsize=6.5)
            bars.invert_yaxis()
            bars.set_xscale("log")
            floor = max(min([value for value in [*values, *best, step.zero] if value > 0], default=1e-3), step.zero * 1e-4)
            bars.set_xlim(floor / 2, 2 * max([*values, step.zero]))
        grid[0, 0].set_title("taken away", fontsize=8)
        grid[0, 1].set_title("what is left", fontsize=8)
        grid[0, 2].set_title("each perturbation", fontsize=8)
        grid[0, 3].set_title("infidelity, ← lower is better", fontsize=8)
        grid[-1, 2].set_xlabel("the logit falls by", fontsize=7)
        grid[-1, 3].set_xlabel("squared logits, mean over the perturbations", fontsize=7)
        grid[0, 2].legend(frameon=False, fontsize=5.5, handletextpad=0.1, borderpad=0)
        figure.legend(*grid[0, 3].get_legend_handles_labels(), loc="outside lower right", ncols=3, frameon=False, fontsize=7)
    return figure
