"""Infidelity and max-sensitivity against the quality of models."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import blended_transform_factory

from idsds.plots.architectures import architecture_handles, looks_of
from idsds.plots.style import COLUMNS, STYLES, Look, add_legend, handle, look_of, mixed, style_of, styled

# Measure, its axis, whether that is logarithmic.
SCATTER = [
    ("raw", "infidelity\n(squared logits)", True),
    ("relative", "relative infidelity\n(map of zeros: 1)", False),
    ("sensitivity", "max-sensitivity\n(relative change)", False),
]
# Blocks of the forest: what is correlated with what, and the heading.
FOREST = [
    ("raw", "accuracy", "infidelity"),
    ("raw", "change", "infidelity, here with the logit's squared change"),
    ("raw", "accuracy given change", "infidelity, that change held fixed (partial)"),
    ("relative", "accuracy", "relative infidelity: both scales taken out"),
    ("sensitivity", "accuracy", "max-sensitivity"),
]
# A logarithmic axis ends at the median over this factor: a model that never changes its answer has next to no infidelity.
BELOW = 1e3
CONTROL = "Random"
CROWDED = 30  # points of a panel
STUDY = "#000000"
THEIRS = "Guided Backprop"  # the method of the study whose values are printed
# Lanes of a block of the forest: its heading and its first method, below its upper end, and what it has beyond its methods.
HEADING, FIRST, BEYOND = 0.95, 2.0, 1.8
LANE = 0.1  # inches


@styled
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
        table: one row per model and method: dataset, model, fraction, method, family, accuracy, the measures, ``top5`` (for the titles).
        correlations: of it: method, measure, quality, level, spearman, low, high, models, groups.
        study: the study's models and methods, with weighted_precision in place of accuracy; the panels show Guided Backprop.
        study_correlations: of those.
        shown: the method of the upper panels; None: the study's where every model has it, else the first.
    """
    datasets = list(dict.fromkeys(table["dataset"]))
    shown = _shown(table) if shown is None else shown
    part = table[table["method"] == shown]
    looks = looks_of([*part["model"], *study["model"]])
    lanes = correlations["method"].nunique() + study_correlations["method"].nunique()
    upper, lower = 4.3, 1.5 + LANE * len(FOREST) * (lanes + BEYOND)  # inches
    figure = plt.figure(figsize=(COLUMNS[columns], upper + lower), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(upper, lower))
    grid = above.subplots(len(SCATTER), len(datasets) + 1, squeeze=False)
    for column, name in enumerate([*datasets, None]):
        rows = part[part["dataset"] == name] if name else study[study["method"] == THEIRS]
        for axes, (measure, label, logarithmic) in zip(grid[:, column], SCATTER, strict=True):
            if measure not in rows:
                axes.set_axis_off()
                continue
            _scatter(axes, rows, "accuracy" if name else "weighted_precision", measure, looks, logarithmic)
            if measure == "relative" and _control_line(axes, table[table["dataset"] == name]):
                label = label.replace("map of zeros: 1", f"line: {CONTROL}")
            if column == 0:
                axes.set_ylabel(f"{label}\n← lower is better")
        grid[-1, column].set_xlabel(f"{'accuracy' if name else 'weighted precision'} (0 to 1)\nhigher is better →")
        near = f"\ntop-5: {rows['top5'].min():.3f} to {rows['top5'].max():.3f}" if "top5" in rows else ""
        grid[0, column].set_title(f"{name}, {shown}{near}" if name else f"the study, {THEIRS}", fontsize=8)
    # The study has no relative infidelity: the legend stands in its place.
    handles = architecture_handles([*part["model"], *study["model"]], lines=False)
    title = "architecture; the paler, the\nfewer training images; bars:\n95 % over images; hollow, at\nthe edge: far below the axis"
    grid[1, -1].legend(handles=handles, loc="center", frameon=False, fontsize=6.5, title=title, title_fontsize=6.5)
    _forest(below, correlations, study_correlations, table)
    return figure


def _shown(table: pd.DataFrame) -> str:
    """Return the method of the upper panels: the study's, if it applies to all models."""
    most = table["method"].value_counts()
    return THEIRS if most.get(THEIRS, 0) == most.max() else str(table["method"].iloc[0])


def _scatter(axes: Axes, rows: pd.DataFrame, quality: str, measure: str, looks: dict[str, tuple[str, str, str]], logarithmic: bool) -> None:
    """Draw a point per model, with a thin bar if the table has an interval."""
    floor = rows[measure].median() / BELOW if logarithmic else -np.inf
    for row in rows.itertuples():
        marker, colour, _ = looks[row.model]
        value, place = getattr(row, measure), getattr(row, quality)
        face = mixed(colour, 0.7 * (1 - row.fraction)) if value >= floor else "none"  # hollow at the lower edge: below the axis
        drawn = {"color": colour, "markerfacecolor": face, "markersize": 4 if len(rows) < CROWDED else 3.2, "markeredgewidth": 0.6}
        ends = np.array([getattr(row, f"{measure}_{end}", np.nan) for end in ("low", "high")])
        axes.plot([place] * 2, np.maximum(ends, floor), color=mixed(colour, 0.4), linewidth=0.5, zorder=1.5)
        axes.plot(place, max(value, floor), marker, clip_on=False, **drawn)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    axes.grid(color="#E5E5E5", linewidth=0.4)


def _control_line(axes: Axes, rows: pd.DataFrame) -> bool:
    """Draw the mean of random maps over the models, and return whether there is one."""
    control = rows.loc[rows["method"] == CONTROL, "relative"]
    if len(control):
        axes.axhline(control.mean(), color=STYLES["control"][2], linewidth=0.7)
    return bool(len(control))


def _forest(figure: Figure, ours: pd.DataFrame, study: pd.DataFrame, table: pd.DataFrame) -> None:
    """Draw a panel per level, with a block per correlated pair: each method's coefficient, and the study's."""
    families = dict(zip(table["method"], table["family"], strict=True))
    study = study.assign(quality=study["quality"].str.replace("weighted_precision", "accuracy"))  # its counterpart
    methods, theirs, levels = list(dict.fromkeys(ours["method"])), list(dict.fromkeys(study["method"])), list(dict.fromkeys(ours["level"]))
    height = len(methods) + len(theirs) + BEYOND
    grid = figure.subplots(1, len(levels), sharey=True, squeeze=False)[0]
    tops = [place * height for place in range(len(FOREST))]
    for axes, level in zip(grid, levels, strict=True):
        for (measure, quality, _), top in zip(FOREST, tops, strict=True):
            for row in _rows(ours[ours["level"] == level], measure, quality).itertuples():
                lane = top + FIRST + methods.index(row.method)
                if np.isnan(row.spearman):
                    constant = table.loc[table["method"] == row.method, measure].nunique() == 1
                    axes.text(0.03, lane, "constant" if constant else "undefined", fontsize=5.5, color="#555555", va="center")
                _whisker(axes, row, lane, look_of(row.method, families[row.method]))
            for row in _rows(study[study["level"] == level], measure, quality).itertuples():
                _whisker(axes, row, top + FIRST + len(methods) + theirs.index(row.method), Look("d", STUDY, "white"))
            if top:
                axes.axhline(top, color="#BBBBBB", linewidth=0.5)
        axes.axvline(0, color="#888888", linewidth=0.6)
        axes.set_xlim(-1.06, 1.06)
        axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["\N{MINUS SIGN}1", "\N{MINUS SIGN}0.5", "0", "0.5", "1"])
        axes.set_ylim(len(FOREST) * height, 0)
        mine, other = ((part["models"].max(), part.loc[part["level"] == level, "groups"].max()) for part in (ours, study))
        axes.set_title(f"{level}\nours: {mine[0]} models in {mine[1]} groups,\nthe study: {other[0]} in {other[1]}", fontsize=6.5)
    _name_lanes(figure, grid[0], tops, methods, ours, study)
    what = "Spearman correlation with accuracy (the study: with weighted precision)"
    grid[1].set_xlabel(f"{what};\nsecond block: with the squared change of the logit")
    used = {style_of(name, families[name]) for name in methods}
    handles = [handle(key) for key in STYLES if key in used]
    handles.append(Line2D([], [], marker="d", linestyle="", color=STUDY, markerfacecolor="white", markersize=5, label="the study"))
    title = (
        "above 0, except in the second block: better models look worse (lower values are better)\n"
        "bars: 95 % intervals over groups (architecture on data set), right: Student's t over the groups' own correlations,\n"
        "elsewhere a jackknife that leaves out each group in turn; no bar: no interval"
    )
    add_legend(figure, handles, 6, loc="outside lower center", title=title)


def _rows(found: pd.DataFrame, measure: str, quality: str) -> pd.DataFrame:
    return found[(found["measure"] == measure) & (found["quality"] == quality)]


def _name_lanes(figure: Figure, axes: Axes, tops: list[float], methods: list[str], ours: pd.DataFrame, study: pd.DataFrame) -> None:
    """The names of the blocks from the figure's left edge on, and of their lanes beside the axis."""
    labels = {}
    from_the_left = blended_transform_factory(figure.transSubfigure, axes.transData)
    for (measure, quality, name), top in zip(FOREST, tops, strict=True):
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over the line of 0
        heading = axes.text(0.008, top + HEADING, name, fontsize=7, weight="bold", va="center", transform=from_the_left, bbox=ground)
        heading.set_in_layout(False)  # it stands above the names of the methods, and may reach into the panel
        there = list(dict.fromkeys(_rows(study, measure, quality)["method"]))
        last = [f"study: {name}" for name in there] or ["the study: none"]
        names = [*(_numbered(name, measure, ours) for name in methods), *last]
        labels |= {top + FIRST + lane: name for lane, name in enumerate(names)}
    axes.set_yticks(list(labels), list(labels.values()), fontsize=6)
    for panel in figure.axes:
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_visible(False)  # it would cross the headings


def _numbered(method: str, measure: str, ours: pd.DataFrame) -> str:
    """Return the method's label, with its number of models if others have more."""
    mine = ours.loc[(ours["method"] == method) & (ours["measure"] == measure), "models"].max()
    return method if mine == ours["models"].max() else f"{method} ({mine:.0f} models)"


def _whisker(axes: Axes, row: object, lane: float, look: Look) -> None:
    axes.plot([row.low, row.high], [lane, lane], color=look.colour, linewidth=0.8)  # type: ignore[attr-defined]
    axes.plot(row.spearman, lane, **look.line(3.5))  # type: ignore[attr-defined]
