"""Each image's probability against the infidelity and max-sensitivity of its map: a row per metric, a column per method."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from idsds.plots.architectures import looks_of
from idsds.plots.style import COLUMNS, add_legend, panel_grid, styled

#: Each metric's label, and whether its axis is logarithmic.
METRICS = {
    "infidelity": ("infidelity (squared logits)\n← lower is better", True),
    "max_sensitivity": ("max-sensitivity\n← lower is better", False),
}


@styled
def score_vs_metrics(images: pd.DataFrame, table: pd.DataFrame, *, target: str = "prediction", columns: int = 2) -> Figure:
    """Draw a point per image and model, hollow where the model is wrong, and the correlation of each model above the panel.

    Args:
        images: model, method, metric, probability, correct, score.
        table: model, method, metric, rho.
    """
    methods, looks = list(dict.fromkeys(images["method"])), looks_of(images["model"])
    figure, grid = panel_grid(2, len(methods), COLUMNS[columns], 4.3, sharex=True, sharey="row")
    for row, (metric, (label, logarithmic)) in enumerate(METRICS.items()):
        for axes, method in zip(grid[row], methods, strict=True):
            rhos = []
            for model, (marker, colour, _) in looks.items():
                part = images[(images["metric"] == metric) & (images["method"] == method) & (images["model"] == model)]
                part = part[part["score"] > 0] if logarithmic else part
                for correct, face in ((True, colour), (False, "none")):
                    some = part[part["correct"] == correct]
                    drawn = {"markersize": 2.5, "markeredgewidth": 0.5, "alpha": 0.7, "rasterized": True}
                    axes.plot(some["probability"], some["score"], marker, color=colour, markerfacecolor=face, **drawn)
                mine = table[(table["metric"] == metric) & (table["method"] == method) & (table["model"] == model)]
                rhos += [f"{rho:+.2f}" if pd.notna(rho) else "undefined" for rho in mine["rho"]]
            axes.set_title(f"{method}\n{', '.join(rhos)}" if row == 0 else ", ".join(rhos), fontsize=6.5)
            axes.grid(color="#E5E5E5", linewidth=0.4)
            axes.tick_params(labelsize=6)
            if logarithmic:
                axes.set_yscale("log")
                axes.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        grid[row, 0].set_ylabel(label)
    figure.supxlabel(f"probability of the explained class, the {target} (0 to 1)", fontsize=8)
    dot = {"linestyle": "", "markersize": 4}
    handles = [Line2D([], [], marker=marker, color=colour, label=model, **dot) for model, (marker, colour, _) in looks.items()]
    handles.append(Line2D([], [], marker="o", color="#555555", markerfacecolor="none", label="the model is wrong", **dot))
    title = "above each panel: Spearman correlation over images, in the order of the models"
    add_legend(figure, handles, 4, title=title)
    return figure
