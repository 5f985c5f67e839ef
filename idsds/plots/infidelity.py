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
from idsds.infidelity_study import GROUPS, LEVELS
from idsds.plots.gallery import DIVERGING
from idsds.plots.study import architecture_handles, looks_of
from idsds.plots.style import COLUMNS, STYLE, STYLES, Look, handle, look_of, style_of

# Measure, its axis, whether that is logarithmic.
SCATTER = [
    ("raw", "infidelity\n(squared logits)", True),
    ("relative", "relative\ninfidelity", False),
    ("sensitivity", "max-sensitivity", False),
]
FOREST = {
    "raw": "infidelity",
    "normalised": "infidelity, map's scale taken out",
    "relative": "relative infidelity: logit's scale taken out too",
    "sensitivity": "max-sensitivity",
}
# A logarithmic axis ends so many times below the median: a model that never changes its mind has next to no infidelity.
BELOW = 1e3
STUDY = "#000000"
THEIRS = "Guided Backprop"  # the method of the study's 75 rows


def infidelity_sensitivity(
    table: pd.DataFrame,
    correlations: pd.DataFrame,
    study: pd.DataFrame,
    study_correlations: pd.DataFrame,
    *,
    shown: str | None = None,
    columns: int = 2,
) -> Figure:
    """Above, metrics of one method against accuracy, a column of panels per data set and one for the study; below, all correlations.

    Args:
        table: from :func:`idsds.infidelity_study.judge`.
        correlations: of it, from :func:`idsds.infidelity_study.correlations`.
        study: from :func:`idsds.infidelity_study.study_table`.
        study_correlations: of that.
        shown: the method of the upper panels; None: the study's where every model has it, else the first.
        columns: width of the figure, in columns of a paper.
    """
    datasets = list(dict.fromkeys(table["dataset"]))
    shown = _shown(table) if shown is None else shown
    part = table[table["method"] == shown]
    looks = looks_of([*part["model"], *study["model"]])
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=(COLUMNS[columns], 9.0), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(4.6, 4.4))
        grid = above.subplots(len(SCATTER), len(datasets) + 1, squeeze=False)
        for column, name in enumerate([*datasets, None]):
            rows = part[part["dataset"] == name] if name else study
            for axes, (measure, label, logarithmic) in zip(grid[:, column], SCATTER, strict=True):
                if measure not in rows:
                    axes.set_axis_off()
                    continue
                _scatter(axes, rows, "accuracy" if name else "weighted_precision", measure, looks, logarithmic)
                if column == 0:
                    axes.set_ylabel(f"{label}\n← lower is better")
            grid[-1, column].set_xlabel("accuracy, higher is better →" if name else "weighted precision →")
            grid[0, column].set_title(f"{name}, {shown}" if name else f"the study, {THEIRS}", fontsize=8)
        # The study has no relative infidelity: the legend stands in its place.
        handles = architecture_handles([*part["model"], *study["model"]], lines=False)
        title = "architecture; the paler, the\nfewer training images"
        grid[1, -1].legend(handles=handles, loc="center", frameon=False, fontsize=6.5, title=title, title_fontsize=6.5)
        _forest(below, correlations, study_correlations, table)
    return figure


def _shown(table: pd.DataFrame) -> str:
    """The method of the upper panels: what stands beside the study is its own method, where it applies to all models."""
    most = table["method"].value_counts()
    return THEIRS if most.get(THEIRS, 0) == most.max() else str(table["method"].iloc[0])


def _scatter(axes: Axes, rows: pd.DataFrame, quality: str, measure: str, looks: dict[str, tuple[str, str, str]], logarithmic: bool) -> None:
    floor = rows[measure].median() / BELOW if logarithmic else -np.inf
    for row in rows.itertuples():
        marker, colour, _ = looks[row.model]
        value, alpha = getattr(row, measure), 0.3 + 0.7 * row.fraction
        face = colour if value >= floor else "none"  # hollow at the lower edge: below the axis
        axes.plot(
            getattr(row, quality), max(value, floor), marker, color=colour, markerfacecolor=face, markersize=4, alpha=alpha, clip_on=False
        )
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    axes.grid(color="#E5E5E5", linewidth=0.4)


def _forest(figure: Figure, ours: pd.DataFrame, study: pd.DataFrame, table: pd.DataFrame) -> None:
    """A panel per level, a block per measure: each method's correlation with accuracy, and the study's."""
    families = dict(zip(table["method"], table["family"], strict=True))
    methods = list(dict.fromkeys(ours["method"]))
    grid = figure.subplots(1, len(LEVELS), sharey=True, squeeze=False)[0]
    block = len(methods) + 2  # lanes: a heading, the methods, the study
    for axes, level in zip(grid, LEVELS, strict=True):
        for place, measure in enumerate(FOREST):
            mine = ours[(ours["level"] == level) & (ours["measure"] == measure) & (ours["quality"] == "accuracy")]
            theirs = study[(study["level"] == level) & (study["measure"] == measure) & (study["quality"] == "weighted_precision")]
            for row in mine.itertuples():
                look = look_of(row.method, families[row.method])
                lane = block * place + 1 + methods.index(row.method)
                if np.isnan(row.spearman):
                    constant = table.loc[table["method"] == row.method, measure].nunique() == 1
                    word = "constant" if constant else "undefined"
                    axes.text(0.03, lane, word, fontsize=5, color="#555555", va="center")
                _whisker(axes, row, lane, look)
            for row in theirs.itertuples():
                _whisker(axes, row, block * place + block - 1, Look("d", STUDY, "white"))
            if place:
                axes.axhline(block * place - 0.5, color="#BBBBBB", linewidth=0.5)
            if axes is grid[0]:
                axes.text(-1.0, block * place + 0.05, FOREST[measure], fontsize=6.5, weight="bold", va="center")
        axes.axvline(0, color="#888888", linewidth=0.6)
        axes.set_xlim(-1.06, 1.06)
        axes.set_ylim(block * len(FOREST) - 0.5, -0.5)
        lanes = [
            (block * place + 1 + lane, name)
            for place, measure in enumerate(FOREST)
            for lane, name in enumerate([*(_numbered(name, measure, ours) for name in methods), "the study"])
        ]
        axes.set_yticks([lane for lane, _ in lanes], [name for _, name in lanes], fontsize=5.5)
        axes.tick_params(axis="y", length=0)
        counts = [(part["models"].max(), part.loc[part["level"] == level, "groups"].max()) for part in (ours, study)]
        (models, groups), (their_models, their_groups) = counts
        numbers = f"ours: {models} models in {groups} groups,\nthe study: {their_models} in {their_groups}"
        axes.set_title(f"{level}\n{numbers}", fontsize=6.5)
    grid[1].set_xlabel("Spearman correlation with accuracy (the study: with weighted precision)")
    used = [key for key in STYLES if key in {style_of(name, families[name]) for name in methods}]
    study_handle = Line2D([], [], marker="d", linestyle="", color=STUDY, markerfacecolor="white", markersize=5, label="the study")
    title = (
        "below 0: the better the model, the lower (better) the value; bars: 95 % intervals over groups (architecture on data set),\n"
        f"right: Student's t over the groups' own correlations; elsewhere a bootstrap, of {GROUPS} groups or more; no bar: none"
    )
    handles = [*(handle(key) for key in used), study_handle]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=7, title=title, title_fontsize=7)


def _numbered(method: str, measure: str, ours: pd.DataFrame) -> str:
    """The method, with the number of its models where others have more."""
    mine = ours.loc[(ours["method"] == method) & (ours["measure"] == measure), "models"].max()
    return method if mine == ours["models"].max() else f"{method} ({mine:.0f} models)"


def _whisker(axes: Axes, row: object, lane: float, look: Look) -> None:
    axes.plot([row.low, row.high], [lane, lane], color=look.colour, linewidth=0.8)  # type: ignore[attr-defined]
    axes.plot(row.spearman, lane, **look.line(3.5))  # type: ignore[attr-defined]


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
                # Told apart in grey: dark filled dots over hollow squares.
                look = {"marker": "s", "color": "#D55E00", "markerfacecolor": "none", "markeredgewidth": 0.5, "zorder": 2}
                if number == 0:
                    look = {"marker": "o", "color": "#003A5D", "markeredgewidth": 0, "zorder": 3}
                right.plot(step.changes, step.predicted[name], linestyle="", markersize=3, label=name, **look)
            ends = [step.changes.min(), step.changes.max()]
            right.plot(ends, ends, color="#444444", linewidth=0.7)
            right.set_ylabel("map foretells", fontsize=7)
            place = np.arange(len(maps))
            values = [step.infidelity[name] for name in maps]
            best = [step.normalised[name] for name in maps]
            floor = max(min([value for value in [*values, *best, step.zero] if value > 0], default=1e-3), step.zero * 1e-4)
            bars.barh(place - 0.18, values, 0.36, color="#0072B2", label="as it is")
            bars.barh(
                place + 0.18, best, 0.36, color="#FFFFFF", edgecolor="#0072B2", hatch="////", linewidth=0.6, label="scaled to its best"
            )
            for lane, value in zip(place, values, strict=True):
                if value < floor:
                    bars.annotate(
                        "0", (0, lane), (2, 0), xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=6, va="center"
                    )
            bars.axvline(step.zero, color="#D55E00", linewidth=1, linestyle="--", label="map of zeros")
            bars.set_yticks(place, maps, fontsize=6.5)
            bars.invert_yaxis()
            bars.set_xscale("log")
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
