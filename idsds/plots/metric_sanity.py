"""The table metric x property as a heat map with numbers: the darker, the better, and readable in grey."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from idsds.plots.style import COLUMNS, STYLE

# column: (heading with its better direction, how a value is printed, its goodness in [0, 1])
PROPERTIES: dict[str, tuple[str, Callable[[float], str], Callable[[float], float]]] = {
    "ordering": ("order of maps\nby noise ↑", "{:+.2f}".format, lambda x: max(0.0, x)),
    "exact_first": ("exact map\nfirst ↑", "{:.0%}".format, lambda x: x),
    "random_last": ("random map\nlast ↑", "{:.0%}".format, lambda x: x),
    "resolution": (
        "resolution: least\nnoise seen ↓",
        lambda x: "none" if np.isnan(x) else f"{x:g}",
        lambda x: 1 / (1 + 2 * x) if x == x else 0,
    ),
    "separation": ("exact - random,\nin SDs ↑", "{:+.1f}".format, lambda x: min(1.0, max(0.0, x / 4))),
    "above_random": ("methods above\nRandom ↑", "{:.0%}".format, lambda x: x),
    "above_edges": ("methods above\nEdges ↑", "{:.0%}".format, lambda x: x),
    "model_shift": ("shift between\nmodels ↓", "{:.2f}".format, lambda x: max(0.0, 1 - x)),
    "control_shift": ("Random's shift\nbetween nets ↓", "{:.2f}".format, lambda x: max(0.0, 1 - x)),
    "forward": ("cost: forward\npasses ↓", "{:.0f}".format, lambda x: 1 / (1 + x / 16)),
    "maps": ("cost: maps\nof the method ↓", "{:.0f}".format, lambda x: 1 / (1 + (x - 1) / 4)),
}
SHORT = {
    "ranks methods on one model, comparable between models": "ranks; comparable",
    "ranks methods on one model": "ranks",
    "neither": "neither",
    "does not apply": "n/a",
    "a test to pass, not a ranking": "a test",
}


def metric_sanity(table: pd.DataFrame, columns: int = 2) -> Figure:
    """One row per protocol, one column per property; a white cell with a dash: does not apply, or is not known.

    Args:
        table: from :func:`idsds.metric_sanity.measure`.
        columns: width of the figure, in columns of a paper.
    """
    rows = table.reset_index(drop=True)
    width, row, head, foot = COLUMNS[columns], 0.27, 0.85, 0.42  # inches
    height = head + foot + row * len(rows)
    goodness = np.full((len(rows), len(PROPERTIES)), np.nan)
    with mpl.rc_context(STYLE):
        figure = plt.figure(figsize=(width, height))
        axes = figure.add_axes((0.235, foot / height, 0.6, row * len(rows) / height))
        for (y, record), (x, (name, (_, text, good))) in (
            (down, across) for down in enumerate(rows.to_dict("records")) for across in enumerate(PROPERTIES.items())
        ):
            value = record[name]
            if known(record, name, value):
                goodness[y, x] = good(value)
                axes.text(x, y, text(value), ha="center", va="center", fontsize=6.5, color="white" if goodness[y, x] > 0.55 else "black")
            else:
                axes.text(x, y, "-", ha="center", va="center", fontsize=7, color="#777777")
        axes.imshow(goodness, cmap="Greys", vmin=0, vmax=1.25, aspect="auto", interpolation="nearest")
        axes.set_xticks(range(len(PROPERTIES)), [heading for heading, _, _ in PROPERTIES.values()], rotation=45, ha="left", fontsize=6.2)
        axes.tick_params(axis="both", length=0, labeltop=True, labelbottom=False)
        axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name in rows["protocol"]], fontsize=7)
        for place in np.arange(0.5, len(rows) - 1):
            axes.axhline(place, color="white", linewidth=1.5)
        for place in np.arange(0.5, len(PROPERTIES) - 1):
            axes.axvline(place, color="white", linewidth=1.5)
        for spine in axes.spines.values():
            spine.set_visible(False)
        for y, name in enumerate(rows["verdict"]):
            axes.text(len(PROPERTIES) - 0.35, y, SHORT[name], va="center", ha="left", fontsize=7, fontweight="bold")
        note = (
            "Darker is better; - does not apply. Known ground truth: order, exact, random, resolution, separation, shift between models. "
            "Trained nets: methods above a control\n(95 % paired interval over images), Random's shift. "
            "Verdict: ranks methods on one model (ranks), comparable between models too, neither, or a test to pass (a test)."
        )
        figure.text(0.01, 0.03 / height, note, fontsize=5.8, va="bottom", ha="left")
    return figure


def known(record: dict[str, Any], name: str, value: float) -> bool:
    """Whether there is something to print: a resolution of none is a result, an unknown share is not."""
    return record["applies"] and (name == "resolution" or bool(np.isfinite(value)))
