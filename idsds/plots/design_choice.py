"""A design choice: parallel axes for models that differ in it, and lines that show for each method whether the claim holds."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from idsds.plots.parallel_axes import joins_along, parallel_axes
from idsds.statistics.verdicts import CONTRADICTED, NOT_SUPPORTED, SUPPORTED

# How a line is drawn by the verdict on the pair of axes that it joins: style, width.
LINES = {SUPPORTED: ("-", 1.0), NOT_SUPPORTED: (":", 0.8), CONTRADICTED: ("--", 1.3)}


def design_choice(
    table: pd.DataFrame,
    differences: pd.DataFrame,
    chains: Sequence[Sequence[str]],
    families: dict[str, str],
    *,
    n_patches: int = 16,
    score: str = "IDSDS",
    columns: int = 2,
    published: pd.DataFrame | None = None,
) -> Figure:
    """Draw one axis per model of a chain, ordered by the claim with the highest on top, and connect them by a line per method.

    A line that leans to the left on its way down agrees with the claim. It is solid if the claim is supported, dotted if it is not,
    dashed if it is contradicted; lines of controls are dotted.

    Args:
        table: from :func:`idsds.rank`, the axes as models in the order of the chains.
        differences: higher, lower, method, verdict, one row per pair of axes and method.
        chains: axes, the highest by the claim first.
    """
    verdicts = differences.set_index(["higher", "lower", "method"])["verdict"].to_dict()
    joins = []
    for chain in chains:
        for join in joins_along(table, chain):
            style, width = LINES[verdicts.get((join.first, join.second, join.method), NOT_SUPPORTED)]
            joins.append(join._replace(style=style, width=width))
    notes = [
        Line2D([], [], color="#444444", linestyle=style, linewidth=width, label=f"line: claim {verdict}")
        for verdict, (style, width) in LINES.items()
    ]
    models = [axis for chain in chains for axis in chain]
    looks = {"n_patches": n_patches, "columns": columns, "published": published, "notes": notes, "score": score}
    return parallel_axes(table, families, models, joins, **looks)
