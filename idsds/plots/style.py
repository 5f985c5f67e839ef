"""Shared by all figures: sizes, fonts, the look of each method, and saving a figure with its table.

A method looks the same in every figure. The marker's shape and the hue show its family, so that the figures read in black and white;
colours are those of Okabe and Ito, which colour-blind readers can tell apart. Within a family, lightness shows the method, and the filled
part of the marker its version: half-filled for SmoothGrad and its relatives, hollow for absolute values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure, FigureBase
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.textpath import TextToPath
from seaborn.utils import relative_luminance

from idsds.common.files import atomic
from idsds.methods.base import ABSOLUTE, METHODS, POSITIVE, TENFOLD, TRANSFORMS

# Width in inches of one and two columns of a paper.
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
# A method's lightness within its family: negative towards black, positive towards white. Methods often shown together are far apart;
# methods not listed have the family's own colour.
SHADES = {
    "Gradient": -0.7,
    "IxG": 0.45,
    "IG": 0.0,
    "IG-U": -0.4,
    "Saliency": -0.55,
    "GradientSHAP": -0.2,
    "Guided Backprop": 0.25,
    "Deconvolution": 0.6,
    "Guided Grad-CAM": 0.8,
    "Grad-CAM": 0.0,
    "Grad-CAM++": -0.35,
    "XGrad-CAM": 0.4,
    "Layer-CAM": 0.7,
    "RISE-U": -0.45,
    "Rollout": -0.45,
    "B-cos": -0.45,
    "DeepLIFT": -0.85,
    "DeepSHAP": 0.12,
    "LRP": -0.3,
    "Guided IG": 0.7,
    "Score-CAM": -0.6,
    "SS-CAM": -0.15,
    "IS-CAM": 0.2,
    "Ablation-CAM": -0.75,
    "HiRes-CAM": -0.47,
    "Eigen-CAM": 0.55,
    "FullGrad": 0.85,
    "Occlusion": -0.7,
    "KernelSHAP": 0.3,
    "LIME": 0.6,
    "Shapley": -0.22,
    "Edges": -0.6,
    "Center": 0.5,
}
# Suffixes of method names, and the part of the marker that is then filled.
FILLS = {"-SG-SQ": "bottom", "-SG-VG": "right", "-SG": "left"}
PAPER = " (paper)"
# Published values: hollow and grey, in the shape of the method's marker.
PUBLISHED = "#8A8A8A"
# Minimum contrast of a mark with its surroundings, by the Web Content Accessibility Guidelines 2.1 (criterion 1.4.11).
LEGIBLE = 3.0

STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # embedded TrueType: text stays text
    "ps.fonttype": 42,
    "svg.hashsalt": "idsds",  # equal figures give equal files
    "savefig.dpi": 200,
    "figure.dpi": 100,
}
styled = mpl.rc_context(STYLE)  # decorates a function that draws
# White in the middle; both arms are equally dark at equal distance, and distinguishable for colour-blind readers.
COLOURS = ["#053061", "#0072B2", "#8FC3E3", "#FFFFFF", "#F2AE87", "#C94F00", "#5E2100"]
DIVERGING = LinearSegmentedColormap.from_list("diverging", COLOURS).with_extremes(bad="#BBBBBB")
# Fraction of a map's pixels within the colour scale: one pixel of a gradient may be a hundred times larger than the others.
WITHIN = 0.99


def style_of(method: str, family: str) -> str:
    """Return a method's key in :data:`STYLES`: its family, or ``absolute`` or ``positive`` for such a version."""
    return next((key for suffix, key in VERSIONS.items() if method.endswith(suffix)), family)


@dataclass(frozen=True)
class Look:
    """How a method is drawn, the same in every figure.

    Args:
        marker: its family's marker.
        face: colour of the filled part.
        other: colour of the rest.
        fill: which part is filled: ``full``, ``left``, ``right``, ``bottom`` or ``top``.
        edge: colour of the marker's edge.
    """

    marker: str
    colour: str
    face: str
    other: str = "white"
    fill: str = "full"
    edge: str = ""

    @property
    def ink(self) -> str:
        """The colour of a method that has a panel or row of its own, where lightness need not distinguish it from its family.

        The fill colour, or the edge colour of a hollow marker; if too pale for white paper, the family's colour, made legible.
        """
        own = (self.edge or self.colour) if self.face == "white" else self.face
        return own if contrast(own) >= LEGIBLE else legible(self.colour)

    def line(self, size: float = 5, **looks: Any) -> dict[str, Any]:
        """Keyword arguments of ``Axes.plot`` for its marker."""
        return {
            "marker": self.marker,
            "color": self.colour,
            "markerfacecolor": self.face,
            "markerfacecoloralt": self.other,
            "fillstyle": self.fill,
            "markeredgecolor": self.edge or self.colour,
            "markeredgewidth": 1.0,
            "markersize": 1.6 * size if self.marker == "*" else size,
            **looks,
        }


def look_of(method: str, family: str = "") -> Look:
    """Return a method's style, by its name.

    Args:
        method: a name, with or without a suffix such as `` abs``; ``x10`` does not change the style.
        family: the family of a method that is not in the registry.
    """
    method = method.removesuffix(TENFOLD)  # the same map
    suffix = next((suffix for suffix in (ABSOLUTE, POSITIVE) if method.endswith(suffix)), "")
    base = method.removesuffix(suffix)
    _, marker, hue, _ = STYLES[family_of(method, {method: family or "own"})]
    plain = base.removesuffix(PAPER)
    noise = next((noise for noise in FILLS if plain.endswith(noise)), "")
    plain, fill = plain.removesuffix(noise), FILLS.get(noise, "full")
    if plain == "SG-CAM++":  # SmoothGrad on Grad-CAM++
        plain, fill = "Grad-CAM++", "left"
    face = mixed(hue, SHADES.get(plain, 0.0))
    edge = "#000000" if base.endswith(PAPER) else ""
    if suffix == ABSOLUTE:  # hollow; partly filled markers, or those with a black edge, are pale
        return Look(marker, mixed(hue, 0.3), "white" if fill == "full" and not edge else mixed(face, 0.75), "white", fill, edge or face)
    if suffix == POSITIVE:
        other, fill = ("white", "top") if fill == "full" else (mixed(face, 0.75), fill)
        return Look(marker, mixed(hue, 0.3), face, other, fill, edge)
    return Look(marker, hue, face, "white", fill, edge)


def family_of(method: str, families: Mapping[str, str]) -> str:
    """Return the family of a method: the registry's, else that in ``families``, else ``own``."""
    base = next((method.removesuffix(suffix) for suffix in TRANSFORMS if method.endswith(suffix)), method)
    return METHODS[base].family if base in METHODS else families.get(method, "own")


def mixed(colour: str, share: float) -> str:
    """Mix a colour with white by ``share``, or with black by its absolute value if negative."""
    end = 1.0 if share > 0 else 0.0
    return to_hex([(1 - abs(share)) * value + abs(share) * end for value in to_rgb(colour)])


def contrast(colour: str, ground: str = "white") -> float:
    """Return the contrast of two colours by the Web Content Accessibility Guidelines: from 1 (equal) to 21 (black and white)."""
    darker, lighter = sorted(map(relative_luminance, (colour, ground)))
    return (lighter + 0.05) / (darker + 0.05)


def legible(colour: str) -> str:
    """Darken a colour until its contrast with white is at least :data:`LEGIBLE`."""
    shades = (mixed(colour, -step / 50) for step in range(51))
    return next(shade for shade in shades if contrast(shade) >= LEGIBLE)


def scored_on(table: pd.DataFrame) -> str:
    """Return what the means of a table are over: images, or images and training seeds."""
    nested = table["interval"].str.contains("training seeds and").any() if "interval" in table else False
    return "images x training seeds" if nested else "images"


def drawn_from(table: pd.DataFrame) -> str:
    """Return what the intervals of a table are over: as :func:`scored_on`, or groups of images such as the crops of a photo."""
    grouped = table["interval"].str.contains("groups of images").any() if "interval" in table else False
    return "groups of images" if grouped else scored_on(table)


def handles_of(methods: Iterable[str], families: Mapping[str, str]) -> list[Line2D]:
    """Return the legend's entries: the methods' families, and the meaning of half-filled markers."""
    methods = list(methods)
    used = {style_of(method, family_of(method, families)) for method in methods}
    found = [handle(key) for key in STYLES if key in used and key != "positive"]
    half = {"linestyle": "", "marker": "o", "markersize": 5, "color": "#444444", "markerfacecoloralt": "white"}
    if "positive" in used:  # of any family, in its own shape
        found.append(Line2D([], [], label="positive part", fillstyle="top", **half))
    for end, fill in FILLS.items():
        if any(end in method and not any(other in method for other in FILLS if len(other) > len(end)) for method in methods):
            found.append(Line2D([], [], label=end.strip("-"), fillstyle=fill, **half))
    return found


def handle(key: str) -> Line2D:
    """Return a family's legend entry."""
    label, marker, colour, filled = STYLES[key]
    looks = {"marker": marker, "color": colour, "markerfacecolor": colour if filled else "white"}
    return Line2D([], [], linestyle="", markersize=8 if marker == "*" else 5, label=label, **looks)


def panel_grid(rows: int, across: int, width: float, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """Return a figure of a size in inches, and its panels (rows, across); ``options`` are those of ``plt.subplots``."""
    return plt.subplots(rows, across, figsize=(width, height), squeeze=False, layout="constrained", **options)


def add_legend(figure: FigureBase, handles: Sequence[Artist], ncols: int, **looks: Any) -> Legend:
    """Add a legend without a frame, above the panels; ``looks`` are further arguments of ``Figure.legend``."""
    looks = {"loc": "outside upper center", "fontsize": 7, "frameon": False, **looks}
    return figure.legend(handles=handles, ncols=ncols, **{"title_fontsize": looks["fontsize"], **looks})


def bare(axes: Axes) -> Axes:
    """Remove the ticks of an image's axes, and frame it."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, linewidth=0.5, color="#444444")
    return axes


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Return the width of a line of text of ``size`` points, in points."""
    return TextToPath().get_text_width_height_descent(text, FontProperties(size=size, weight=weight), ismath=False)[0]


def sharpen() -> None:
    """Make a notebook show figures at double resolution, for dense screens; outside a notebook, do nothing."""
    if "ipykernel" in sys.modules:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina")


@styled
def save(
    figures: Figure | Sequence[Figure],
    stem: str | Path,
    tables: dict[str, pd.DataFrame] | pd.DataFrame,
    formats: Iterable[str] = ("png", "pdf"),
    finding: str | None = None,
) -> list[Path]:
    """Save a figure with the table behind it: ``stem.png``, ``stem.pdf`` and ``stem.csv`` (or ``stem_<name>.csv`` for several tables).

    ``finding`` is what the figure shows, in Markdown with computed numbers, saved as ``stem.md`` for the profile's overview.

    If there are several pages, the second is ``stem_2.png`` and so on. No file holds a date, so equal numbers give equal files.
    """
    stem = Path(stem)
    dates = {"png": {"Software": None}, "pdf": {"CreationDate": None, "ModDate": None}, "svg": {"Date": None}}
    writers: dict[str, Callable[[Path], object]] = {}
    for page, figure in enumerate([figures] if isinstance(figures, Figure) else figures, start=1):
        for kind in formats:
            end = f"_{page}.{kind}" if page > 1 else f".{kind}"
            writers[end] = partial(figure.savefig, format=kind, metadata=dates.get(kind))
    for name, table in tables.items() if isinstance(tables, dict) else [("", tables)]:
        end = f"_{name}.csv" if name else ".csv"
        writers[end] = partial(table.to_csv, index=False, float_format="%.6g", lineterminator="\n")
    if finding is not None:
        writers[".md"] = partial(Path.write_text, data=finding.strip() + "\n", encoding="utf-8")
    for end, write in writers.items():
        with atomic(stem.with_name(f"{stem.name}{end}")) as unfinished:
            write(unfinished)
    return [stem.with_name(f"{stem.name}{end}") for end in writers]
