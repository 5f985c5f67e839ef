"""Metrics against properties as a heat map with numbers and their intervals: darker is better, and it is readable in grey."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from idsds.plots.style import COLUMNS, STYLE

Text = Callable[[float], str]
PER_CENT = "{:.0%}".format


def _no_zero(form: str) -> Text:
    """Numbers of little width: .25 and not 0.25."""

    def text(value: float) -> str:
        if abs(value) >= 10:
            return f"{value:.0f}"
        return format(value, form).replace("0.", ".", 1) if abs(value) < 1 else format(value, form)

    return text


# column: (heading with its better direction, how a value is printed, its goodness in [0, 1])
PROPERTIES: dict[str, tuple[str, Text, Callable[[float], float]]] = {
    "ordering": ("order of maps\nby noise ↑", _no_zero("+.2f"), lambda x: max(0.0, x)),
    "exact_first": ("exact map\nfirst ↑", PER_CENT, lambda x: x),
    "shapley_first": ("Shapley values\nfirst ↑", PER_CENT, lambda x: x),
    "random_last": ("random map\nlast ↑", PER_CENT, lambda x: x),
    "resolution": (
        "least noise\ndetected ↓",
        lambda x: "none" if np.isnan(x) else "only noise" if np.isinf(x) else f"{x:g}",
        lambda x: 1 / (1 + 2 * x) if x == x else 0,
    ),
    "beaten": ("noisier maps above\nthe exact one ↓", "{:.0f}".format, lambda x: max(0.0, 1 - x / 3)),
    "scale_shift": ("shift by a map's\nscale ↓", _no_zero(".2f"), lambda x: max(0.0, 1 - x)),
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
LEFT, RIGHT = 1.22, 0.98  # inches for the names and the verdicts


def metric_sanity(table: pd.DataFrame, columns: int = 2) -> Figure:
    """Draw one row per variant of a protocol and one column per property; a white cell with a dash does not apply or is unknown.

    Args:
        table: of the study ``metric_sanity``.
        columns: width of the figure, in columns of a paper.
    """
    rows = table.reset_index(drop=True)
    width, row, head, foot = COLUMNS[columns], 0.31, 0.95, 0.66  # inches
    height = head + foot + row * len(rows)
    goodness = np.full((len(rows), len(PROPERTIES)), np.nan)
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=(width, height))
        axes = figure.add_axes((LEFT / width, foot / height, 1 - (LEFT + RIGHT) / width, row * len(rows) / height))
        for y, record in enumerate(rows.to_dict("records")):
            for x, (name, (_, text, good)) in enumerate(PROPERTIES.items()):
                value = record[name]
                if not known(record, name, value):
                    axes.text(x, y, "-", ha="center", va="center", fontsize=6.5, color="#777777")
                    continue
                goodness[y, x] = good(value)
                colour = "white" if goodness[y, x] > 0.55 else "black"
                ends = _ends(record, name, text)
                size = 6 if len(text(value)) < 6 else 4.6
                axes.text(x, y - (0.14 if ends else 0), text(value), ha="center", va="center", fontsize=size, color=colour)
                axes.text(x, y + 0.24, ends, ha="center", va="center", fontsize=3.7, color=colour)
        axes.imshow(goodness, cmap="Greys", vmin=0, vmax=1.25, aspect="auto", interpolation="nearest")
        axes.set_xticks(range(len(PROPERTIES)), [heading for heading, _, _ in PROPERTIES.values()], rotation=50, ha="left", fontsize=5.8)
        axes.tick_params(axis="both", length=0, labeltop=True, labelbottom=False)
        axes.set_yticks(range(len(rows)), [_name(name) for name in rows["label"]], fontsize=6.3)
        for place in np.arange(0.5, len(rows) - 1):
            axes.axhline(place, color="white", linewidth=1.5)
        for place in np.arange(0.5, len(PROPERTIES) - 1):
            axes.axvline(place, color="white", linewidth=1.5)
        for spine in axes.spines.values():
            spine.set_visible(False)
        for y, name in enumerate(rows["verdict"]):
            axes.text(len(PROPERTIES) - 0.4, y, SHORT[name], va="center", ha="left", fontsize=6.3, fontweight="bold")
        figure.text(0.01, 0.03 / height, _note(rows), fontsize=5.6, va="bottom", ha="left", linespacing=1.25)
    return figure


def known(record: dict[str, Any], name: str, value: float) -> bool:
    """Return whether there is something to print: an infinite resolution is a result, an unknown share is not."""
    return record["applies"] and (name == "resolution" or bool(np.isfinite(value)))


def _ends(record: dict[str, Any], name: str, text: Text) -> str:
    """Return the interval beside a value, if it says more than the value."""
    low, high = record.get(f"{name}_low", np.nan), record.get(f"{name}_high", np.nan)
    if not (np.isfinite(low) and np.isfinite(high)):
        return ""
    return f"{text(low)} to {text(high)}".replace("+", "").replace("%", "", 1)


def _name(label: str) -> str:
    return "\n".join(textwrap.wrap(label.replace("_", " "), 24))


def _note(rows: pd.DataFrame) -> str:
    pairs = rows["pairs_random"].dropna()
    nets = f" ({pairs.min():.0f} to {pairs.max():.0f} pairs of method and net)" if len(pairs) else ""
    retrained = rows["label"].isin(["roar", "kar"])
    units = {name: rows.loc[chosen, "units"].max() for name, chosen in (("images", ~retrained), ("repetitions", retrained))}
    counted = [f"{value:.0f} {name}" for name, value in units.items() if np.isfinite(value)]
    return "\n".join(
        [
            "Darker is better; - does not apply or is not known. Small: 95 % intervals (shares: Wilson; others: jackknife, Student's t).",
            f"Known truth, {' (of retrainings '.join(counted)}{')' * (len(counted) > 1)}: the first eight columns.",
            f"Trained nets{nets}: Random's shift, and methods whose paired 95 % interval against a control leaves 0 out",
            "(of retrainings: by Holm, where leakage alone cannot be the reason). Verdict: ranks methods on one model (ranks), comparable",
            "between models too, or neither; a test does not ask whether a map is right: it is passed or failed.",
        ]
    )
