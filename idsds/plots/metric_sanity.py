"""Metrics against properties as a heat map with numbers and their intervals: darker is better, also in greyscale."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from idsds.plots.style import COLUMNS, DIVERGING, styled

Text = Callable[[float], str]
PER_CENT = "{:.0%}".format


def _no_zero(form: str) -> Text:
    """Format compactly: .25, not 0.25, and 25 without decimals."""
    return lambda value: f"{value:.0f}" if abs(value) >= 10 else re.sub(r"^([+-]?)0\.", r"\1.", format(value, form))


# column: (heading with its better direction, how a value is printed, its goodness in [0, 1])
PROPERTIES: dict[str, tuple[str, Text, Callable[[float], float]]] = {
    "ordering": ("order of maps\nby noise ↑", _no_zero("+.2f"), lambda x: max(0.0, x)),
    "exact_first": ("exact map\nfirst ↑", PER_CENT, lambda x: x),
    "shapley_first": ("Shapley values\nfirst ↑", PER_CENT, lambda x: x),
    "parts_ordering": ("order of maps\nof parts ↑", _no_zero("+.2f"), lambda x: max(0.0, x)),
    "parts_first": ("exact parts\nfirst ↑", PER_CENT, lambda x: x),
    "random_last": ("random map\nlast ↑", PER_CENT, lambda x: x),
    "resolution": (
        "least noise\ndetected ↓",
        lambda x: "none" if np.isnan(x) else "noise\nalone" if np.isinf(x) else f"{x:g}",
        lambda x: 1 / (1 + 2 * x) if x == x else 0,
    ),
    "beaten": ("noisier maps above\nthe exact one ↓", "{:.0f}".format, lambda x: max(0.0, 1 - x / 3)),
    "scale_shift": ("shift by a map's\nscale ↓", _no_zero(".2f"), lambda x: max(0.0, 1 - x)),
    "sign_shift": ("shift by a map's\nsign ↑", _no_zero(".2f"), lambda x: min(1.0, x)),
    "model_shift": ("shift between\nmodels ↓", _no_zero(".2f"), lambda x: max(0.0, 1 - x)),
    "control_shift": ("Random's shift\nbetween nets ↓", _no_zero(".2f"), lambda x: max(0.0, 1 - x)),
    "above_random": ("methods above\nRandom ↑", PER_CENT, lambda x: x),
    "above_edges": ("methods above\nEdges ↑", PER_CENT, lambda x: x),
    "above_center": ("methods above\nCenter ↑", PER_CENT, lambda x: x),
    "forward": ("cost: forward\npasses ↓", "{:.0f}".format, lambda x: 1 / (1 + x / 16)),
    "maps": ("cost: maps\nof the method ↓", "{:.0f}".format, lambda x: 1 / (1 + (x - 1) / 4)),
}
SHORT = {
    "ranks methods on one model, comparable between models": "ranks; comparable",
    "ranks methods on one model": "ranks",
    "neither": "neither",
    "neither: a test to pass, not a ranking": "neither (a test)",
    "does not apply": "n/a",
}
#: What the metrics of a page ask.
PAGES = (("right",), ("localised", "simple", "stable", "dependent"))
SAID = {
    "right": "Is the map right?",
    "localised": "Is it localised?",
    "simple": "Is it simple?",
    "stable": "Is it stable?",
    "dependent": "Does it depend on model and class?",
}
LEFT, RIGHT = 1.36, 0.98  # inches for the names and the verdicts


def metric_sanity(table: pd.DataFrame, agreed: pd.DataFrame | None = None, columns: int = 2) -> Figure | list[Figure]:
    """Draw a page for each :data:`PAGES` that has rows, and one of the agreement of metrics.

    Args:
        table: of the study ``metric_sanity``.
        agreed: its table of agreement; None or without a defined tau: no such page.

    Returns:
        The figure, or several.
    """
    pages = [table[table["asks"].isin(asks)] for asks in PAGES] if "asks" in table else [table]
    figures = [judged(page, columns) for page in pages if len(page)]
    if agreed is not None and agreed["tau"].notna().any():
        figures.append(agreement(agreed, columns))
    return figures if len(figures) > 1 else figures[0]


@styled
def judged(table: pd.DataFrame, columns: int = 2) -> Figure:
    """Draw one row per variant of a protocol and one column per property; a white cell with a dash does not apply or is unknown."""
    rows = table.reset_index(drop=True)
    width, row, head, foot = COLUMNS[columns], 0.31, 0.95, 0.66  # inches
    height = head + foot + row * len(rows)
    goodness = np.full((len(rows), len(PROPERTIES)), np.nan)
    figure = plt.figure(figsize=(width, height))
    axes = figure.add_axes((LEFT / width, foot / height, 1 - (LEFT + RIGHT) / width, row * len(rows) / height))
    for y, record in enumerate(rows.to_dict("records")):
        for x, (name, (_, text, good)) in enumerate(PROPERTIES.items()):
            value = record.get(name, np.nan)
            if not known(record, name, value):
                axes.text(x + 0.5, y + 0.5, "-", ha="center", va="center", fontsize=6.5, color="#777777")
                continue
            goodness[y, x] = good(value)
            colour = "white" if goodness[y, x] > 0.55 else "black"
            ends = _ends(record, name, text)
            up, size = 0.2 if "\n" in ends else 0.14 if ends else 0, 6 if len(text(value)) < 6 else 4.6
            for below, said, points in ((0.5 - up, text(value), size), (0.74, ends, 3.7)):
                axes.text(x + 0.5, y + below, said, ha="center", va="center", fontsize=points, color=colour, linespacing=1)
    names = {"xticklabels": [heading for heading, _, _ in PROPERTIES.values()], "yticklabels": [_name(name) for name in rows["label"]]}
    sns.heatmap(goodness, cmap="Greys", vmin=0, vmax=1.25, cbar=False, linewidths=1.5, linecolor="white", ax=axes, **names)
    axes.tick_params(length=0, labeltop=True, labelbottom=False, labelsize=6.3)
    plt.setp(axes.get_xticklabels(), rotation=50, ha="left", fontsize=5.8)
    plt.setp(axes.get_yticklabels(), rotation=0)
    if "asks" in rows:
        starts = np.flatnonzero(rows["asks"] != rows["asks"].shift())
        for first, last in zip(starts, [*starts[1:], len(rows)], strict=True):
            if first:
                axes.axhline(first, color="black", linewidth=1)
            if last - first > 1:
                middle = (foot + row * (len(rows) - (first + last) / 2)) / height
                figure.text(0.012, middle, SAID[rows["asks"][first]], rotation=90, ha="center", va="center", fontsize=6.3, style="italic")
    for y, name in enumerate(rows["verdict"]):
        axes.text(len(PROPERTIES) + 0.1, y + 0.5, SHORT[name], va="center", ha="left", fontsize=6.3, fontweight="bold")
    figure.text(0.01, 0.03 / height, _note(rows), fontsize=5.6, va="bottom", ha="left", linespacing=1.25)
    return figure


@styled
def agreement(agreed: pd.DataFrame, columns: int = 2) -> Figure:
    """Draw Kendall's tau of every pair of metrics, in the order of a clustering; a dot marks an interval that excludes 0.

    Args:
        agreed: first, second, tau, low, high, models, methods, one row per pair of metrics.
    """
    names = list(dict.fromkeys([*agreed["first"], *agreed["second"]]))
    sure = ((agreed["low"] > 0) | (agreed["high"] < 0)).astype(float)
    taus, marks = (_square(agreed.assign(value=values), names) for values in (agreed["tau"], sure))
    names = [name for name in names if taus.loc[name].drop(name).notna().any()]
    taus, marks = taus.loc[names, names], marks.loc[names, names]
    if len(names) > 2:
        distance = 1 - taus.fillna(0).to_numpy()
        np.fill_diagonal(distance, 0)
        tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
        order = [names[place] for place in leaves_list(tree)]
        taus, marks = taus.loc[order, order], marks.loc[order, order]
    side = COLUMNS[columns]
    figure = plt.figure(figsize=(side, side * 0.93))
    axes = figure.add_axes((0.27, 0.29, 0.62, 0.66))
    bar = figure.add_axes((0.91, 0.45, 0.02, 0.3))
    size = min(6.0, 250 / len(names))
    ticks = [_short(name) for name in taus]
    sns.heatmap(taus, ax=axes, cbar_ax=bar, vmin=-1, vmax=1, cmap=DIVERGING, square=True, xticklabels=ticks, yticklabels=ticks)
    for marker, signed in ((".", taus > 0), ("_", taus < 0)):  # signs can be told apart in grey
        places = np.argwhere(((marks == 1) & signed).to_numpy())
        axes.scatter(places[:, 1] + 0.5, places[:, 0] + 0.5, s=max(4, 160 / len(names)), marker=marker, color="black", linewidths=0.5)
    axes.tick_params(length=0, labelsize=size)
    axes.set_title("Do metrics rank methods alike?", fontsize=8)
    bar.tick_params(labelsize=6)
    bar.set_title("tau", fontsize=6)
    models, methods = int(agreed["models"].max()), int(agreed["methods"].max())
    note = (
        f"Kendall's tau of the rankings of {methods} methods, mean over {models} nets. Q: of Quantus. "
        "Dot (positive) or dash (negative): the 95 % interval over images excludes 0."
    )
    figure.text(0.02, 0.01, note, fontsize=5.8)
    return figure


def _square(agreed: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Return the values of pairs as a symmetric table with 1 on its diagonal."""
    both = pd.concat([agreed, agreed.rename(columns={"first": "second", "second": "first"})])
    square = both.pivot(index="first", columns="second", values="value").reindex(index=names, columns=names)
    return square.mask(np.eye(len(names), dtype=bool), 1.0)


def known(record: dict[str, Any], name: str, value: float) -> bool:
    """Return whether there is a value to print: an infinite resolution is one, an unknown fraction is not."""
    return (record["applies"] or name.startswith("parts_")) and (name == "resolution" or bool(np.isfinite(value)))


def _ends(record: dict[str, Any], name: str, text: Text) -> str:
    """Return the interval beside a value, if it says more than the value."""
    low, high = record.get(f"{name}_low", np.nan), record.get(f"{name}_high", np.nan)
    if not (np.isfinite(low) and np.isfinite(high)):
        return ""
    said = f"{text(low)} to {text(high)}".replace("+", "").replace("%", "", 1)
    return said if len(said) < 9 else said.replace("to ", "to\n")  # no wider than its cell


def _short(label: str) -> str:
    name = label.partition("/")[2]
    return f"{_spaced(name)} (Q)" if name else _spaced(label)


def _name(label: str) -> str:
    return "\n".join(textwrap.wrap(_spaced(label.replace("quantus/", "Quantus ")), 24))


def _spaced(label: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", label).replace("_", " ")


def _note(rows: pd.DataFrame) -> str:
    pairs = rows["pairs_random"].dropna()
    counts = " to ".join(f"{count:.0f}" for count in sorted({pairs.min(), pairs.max()}))
    nets = f" ({counts} pairs of method and net)" if len(pairs) else ""
    distilled = rows["note"].str.contains("distilled", na=False).any()
    retrained = rows["label"].isin(["roar", "kar"])
    units = {name: rows.loc[chosen, "units"].max() for name, chosen in (("images", ~retrained), ("repetitions", retrained))}
    counted = [f"{value:.0f} {name}" for name, value in units.items() if np.isfinite(value)]
    return "\n".join(
        [
            "Darker is better; - does not apply or is not known. Small: 95 % intervals (shares: Wilson; others: jackknife, Student's t).",
            f"Known truth, {' (of retrainings '.join(counted)}{')' * (len(counted) > 1)}: the first eleven columns (parts: of sprites).",
            f"Trained nets{nets}: Random's shift, and methods whose paired 95 % interval against a control excludes 0",
            "(of retrainings: by Holm, where leakage alone cannot be the reason). Verdict: ranks methods on one model (ranks), comparable",
            "between models too, or neither; a test does not ask whether a map is right: it is passed or failed.",
            *["The trained nets were fine-tuned without labels: on them, idsds is IDSDS (distilled)."] * bool(distilled),
        ]
    )
