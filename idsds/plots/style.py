"""What all figures share: sizes, type, the look of each family of methods, and how a figure is saved with its table.

A method's marker tells its family and is the same in every figure, so that the figures read in black and white; colours are those of
Okabe and Ito, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from idsds.methods.base import ABSOLUTE, POSITIVE
from idsds.store import atomic

# Width in inches of one and of two columns of a paper.
COLUMNS = {1: 3.5, 2: 7.2}

# family: (label, marker, colour, filled)
STYLES = {
    "gradient": ("gradient", "o", "#0072B2", True),
    "absolute": ("absolute value", "o", "#56B4E9", False),
    "positive": ("positive part", "v", "#56B4E9", False),
    "CAM": ("CAM", "s", "#D55E00", True),
    "perturbation": ("perturbation", "^", "#E69F00", True),
    "transformer": ("transformer", "P", "#CC79A7", True),
    "intrinsic": ("intrinsic", "*", "#009E73", True),
    "control": ("control", "X", "#666666", True),
    "own": ("your own", "D", "#000000", True),
}

VERSIONS = {ABSOLUTE: "absolute", POSITIVE: "positive"}

STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # embedded TrueType: text stays text
    "ps.fonttype": 42,
    "savefig.dpi": 200,
    "figure.dpi": 100,
}


def style_of(method: str, family: str) -> str:
    """The key of :data:`STYLES` for a method: its family, or ``absolute`` or ``positive`` for that version of any."""
    return next((key for suffix, key in VERSIONS.items() if method.endswith(suffix)), family)


def handle(key: str) -> Line2D:
    """The entry of a family in a legend."""
    label, marker, colour, filled = STYLES[key]
    face = colour if filled else "white"
    return Line2D(
        [], [], linestyle="", marker=marker, color=colour, markerfacecolor=face, markersize=8 if marker == "*" else 5, label=label
    )


def save(
    figures: Figure | Sequence[Figure],
    stem: str | Path,
    tables: dict[str, pd.DataFrame] | pd.DataFrame,
    formats: Iterable[str] = ("png", "pdf"),
    finding: str | None = None,
) -> list[Path]:
    """A figure with the table behind it: ``stem.png``, ``stem.pdf`` and ``stem.csv`` (or ``stem_<name>.csv`` for several tables).

    ``finding`` is what the figure shows in a sentence of computed numbers, kept as ``stem.md`` for the profile's overview.

    Of several pages the second is ``stem_2.png`` and so on. No file holds a date, so that the same numbers give the same files.
    """
    stem = Path(stem)
    written = []
    dates = {"png": {"Software": None}, "pdf": {"CreationDate": None, "ModDate": None}}
    for page, figure in enumerate([figures] if isinstance(figures, Figure) else figures, start=1):
        for kind in formats:
            path = stem.with_name(f"{stem.name}_{page}.{kind}" if page > 1 else f"{stem.name}.{kind}")
            with atomic(path) as partial, mpl.rc_context(STYLE):
                figure.savefig(partial, format=kind, metadata=dates.get(kind))
            written.append(path)
    for name, table in tables.items() if isinstance(tables, dict) else [("", tables)]:
        path = stem.with_name(f"{stem.name}_{name}.csv" if name else f"{stem.name}.csv")
        with atomic(path) as partial:
            table.to_csv(partial, index=False, float_format="%.4f", lineterminator="\n")
        written.append(path)
    if finding is not None:
        with atomic(stem.with_name(f"{stem.name}.md")) as partial:
            partial.write_text(finding.strip() + "\n")
        written.append(stem.with_name(f"{stem.name}.md"))
    return written
