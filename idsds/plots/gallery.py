"""Images, the effect of deleting their patches, and the maps of many attribution methods side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import matplotlib as mpl
import matplotlib.patheffects
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import rankdata

from idsds.plots.style import DIVERGING, WITHIN, bare, styled, text_width

GREY = np.array([0.299, 0.587, 0.114])  # luma of red, green and blue
PAGE_HEIGHT = 10.0  # inches, most of a page
CELL, GAP, MARGIN = 0.92, 0.07, 0.08  # inches: width of a picture, space between two, border
ACROSS = {1: 3, 2: 5}  # maps in a line of a figure of so many columns
SHRUNK = {1: 0.65, 2: 1.0}  # what a picture is scaled by there
TITLE, HEAD, NOTE = 0.30, 0.30, 0.105  # inches: two lines above a picture, the page's head, a line of notes at its foot
MOST_PATCHES = 5  # per side; numbers in smaller patches could not be read


@dataclass(frozen=True, eq=False)
class Example:
    """One image and one model, with the maps of all methods that apply.

    Args:
        model, seed, dataset, image_id: which.
        target_logit, prediction_logit: their logits on the intact image.
        picture: (H, W, 3) in [0, 1].
        drops: (grid, grid), the drop in the target's logit when a patch is deleted, from the records.
        records: the engine's records of this image, indexed by method; ``score`` and ``patch_sums`` (grid * grid,) are used.
        maps: by method the signed map (H, W), summed over channels.
    """

    model: str
    seed: int
    dataset: str
    image_id: str
    target: str
    prediction: str
    target_logit: float
    prediction_logit: float
    picture: np.ndarray
    drops: np.ndarray
    records: pd.DataFrame
    maps: Mapping[str, np.ndarray]
    score: str = "IDSDS"


@dataclass(frozen=True)
class _Layout:
    """The layout of a page, in inches from the top left."""

    images: int
    methods: int
    across: int
    aspect: float
    score: str
    scale: float

    @property
    def cell(self) -> float:
        return CELL * self.scale

    @property
    def lines(self) -> int:
        """Lines of maps per image."""
        return -(-self.methods // self.across)

    @property
    def columns(self) -> int:
        """Maps per line, as evenly as possible."""
        return -(-self.methods // self.lines)

    @property
    def line(self) -> float:
        return TITLE + self.cell * self.aspect + GAP

    @property
    def width(self) -> float:
        return 2 * MARGIN + (2 + max(3, self.columns)) * (self.cell + GAP)

    @property
    def beside(self) -> float:
        """The top of the maps, and of the notes below them."""
        return MARGIN + 2 * (self.cell + GAP) + GAP

    @cached_property
    def notes(self) -> list[str]:
        """The meaning of colours and numbers, in lines that fit."""
        notes = [
            "Left to right: image (target → prediction); drop of the target's logit when a patch is deleted; maps.",
            f"Every panel has its own scale s: the largest |drop|, or the value that {WITHIN:.0%} of a map's pixels do not exceed.",
            "Small numbers: rank of a patch by its drop, and by its sum of attribution, 1 is highest. "
            f"{self.score}: rank correlation of the two, \N{MINUS SIGN}1 to 1, higher is better; the highest of an image is bold.",
        ]
        letters = int((self.width - self.beside - MARGIN) * 72 / (6.0 * 0.53))
        return [line for note in notes for line in textwrap.wrap(note, letters)]

    @property
    def foot(self) -> float:
        return GAP + len(self.notes) * NOTE + MARGIN

    @property
    def height(self) -> float:
        return HEAD + self.images * self.lines * self.line + self.foot

    @property
    def most_images(self) -> int:
        """Images that a page takes."""
        return max(1, int((PAGE_HEIGHT - HEAD - self.foot) / (self.lines * self.line)))

    def corner(self, line: int, column: int) -> tuple[float, float]:
        """Return the top left of a panel; the maps are set apart from the first two columns."""
        return (
            self.beside + (column - 2) * (self.cell + GAP) if column > 1 else MARGIN + column * (self.cell + GAP)
        ), HEAD + line * self.line + TITLE

    @cached_property
    def figure(self) -> Figure:
        return plt.figure(figsize=(self.width, self.height))

    def axes(self, line: int, column: int) -> Axes:
        """Axes of a picture."""
        left, top = self.corner(line, column)
        height = self.cell * self.aspect
        place = (left / self.width, 1 - (top + height) / self.height, self.cell / self.width, height / self.height)
        return bare(self.figure.add_axes(place))

    def text(self, left: float, top: float, text: str, width: float, size: float = 6.5, **looks: Any) -> None:
        """Write a left-aligned line of text that fits ``width`` inches."""
        text, size = fitted(text, 0.95 * width * 72, size, looks.get("weight", "normal"))
        self.figure.text(left / self.width, 1 - top / self.height, text, fontsize=size, ha="left", va="baseline", parse_math=False, **looks)


@styled
def gallery(examples: Sequence[Example], *, columns: int = 2, across: int | None = None) -> list[Figure]:
    """Draw a row per image: the image, the drops of the target's logit as patches are deleted, and a map per method with its score.

    Zero is white. Each map has its own scale, symmetric about zero, which 1 % of its pixels may exceed. Small numbers are the patches'
    ranks, whose correlation is the score.

    Args:
        examples: one per image, by model and training seed.
        columns: width of the figure, in columns of a paper; in one column, numbers that would be too small are omitted.
        across: maximum number of maps per line, None for :data:`ACROSS`; a model with more methods gets several lines per image.

    Returns:
        The pages: a new one for each model and training seed, and when one is full.

    Raises:
        ValueError: without examples.
    """
    if not examples:
        raise ValueError("there is nothing to draw: examples is empty")
    across = ACROSS[columns] if across is None else across
    if across < 1:
        raise ValueError(f"across must be at least 1, not {across}")
    pages = []
    for _, group in groupby(examples, key=lambda example: (example.model, example.seed)):
        rows = list(group)
        shape = {"methods": max(len(row.maps) for row in rows), "across": across, "score": rows[0].score}
        shape["scale"] = SHRUNK[columns]
        shape["aspect"] = max(row.picture.shape[0] / row.picture.shape[1] for row in rows)
        most = _Layout(1, **shape).most_images
        pages += [_page(rows[start : start + most], shape) for start in range(0, len(rows), most)]
    return pages


def _page(examples: Sequence[Example], shape: dict[str, Any]) -> Figure:
    layout = _Layout(len(examples), **shape)
    first = examples[0]
    layout.text(MARGIN, 0.17, f"{first.model} on {first.dataset}, training seed {first.seed}", layout.width - 2 * MARGIN, 8, weight="bold")
    for number, example in enumerate(examples):
        line = number * layout.lines
        left, top = layout.corner(line, 0)
        layout.text(left, top - 0.17, example.image_id, 2 * layout.cell + GAP)
        layout.text(left, top - 0.05, decision_of(example), 2 * layout.cell + GAP)
        layout.axes(line, 0).imshow(example.picture, vmin=0, vmax=1, aspect="auto")
        draw_drops(layout.axes(line, 1), example, layout.scale)
        best = example.records["score"].max()
        for index, (name, values) in enumerate(example.maps.items()):
            below, column = divmod(index, layout.columns)
            left, top = layout.corner(line + below, 2 + column)
            score = example.records.loc[name, "score"]
            layout.text(left, top - 0.17, name, layout.cell)
            weight = "bold" if score == best else "normal"
            called = example.score if len(example.score) <= len("IDSDS") else "score"  # a long name is at the foot alone
            layout.text(left, top - 0.05, f"{called} {as_text(score, 2)}", layout.cell, weight=weight)
            sums = np.asarray(example.records.loc[name, "patch_sums"])
            draw_map(layout.axes(line + below, 2 + column), values, sums, len(example.drops), layout.scale)
    _foot(layout)
    return layout.figure


def decision_of(example: Example) -> str:
    """Return target and prediction with their logits; for a class with several names, the first."""
    target, prediction = (name.split(",")[0] for name in (example.target, example.prediction))
    if (example.target, example.target_logit) == (example.prediction, example.prediction_logit):
        return f"{target} → {prediction} (logit {as_text(example.target_logit, 1)})"
    return f"{target} ({as_text(example.target_logit, 1)}) → {prediction} (logit {as_text(example.prediction_logit, 1)})"


def draw_drops(axes: Axes, example: Example, shrunk: float) -> None:
    """Draw the drops over the image in grey, with the patches' ranks; ``shrunk`` scales the numbers."""
    drops, grid = example.drops, len(example.drops)
    picture, lightness, scale = drops_over_image(example)
    axes.imshow(picture, vmin=0, vmax=1, extent=(0, grid, grid, 0), aspect="auto")
    _draw_grid(axes, grid)
    if grid <= MOST_PATCHES * shrunk:
        digits = 0 if scale >= 99.5 else 1 if scale >= 0.995 else 2
        size = shrunk * min(6.0, 25 / grid)
        for (row, column), drop in np.ndenumerate(drops):
            text = as_text(drop, digits).replace("0.", ".") if digits == 2 else as_text(drop, digits)
            _label(axes, column + 0.5, row + 0.76, text, size, lightness[row, column], ha="center")
        _draw_ranks(axes, drops.ravel(), grid, shrunk, lightness)


def drops_over_image(example: Example) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the drops' colours over the image in grey (H, W, 3), the lightness of each patch (grid, grid), and the largest |drop|."""
    drops, grey = example.drops, example.picture @ GREY  # (H, W)
    scale = float(np.nanmax(np.abs(drops), initial=0)) or 1.0
    colours = DIVERGING((drops / scale + 1) / 2)[..., :3]  # (grid, grid, 3)
    rows, columns = (np.arange(length) * len(drops) // length for length in grey.shape)
    # The picture in grey shines through: multiplied, so that no drop stays white where the picture is bright.
    return colours[rows][:, columns] * (0.72 + 0.28 * grey)[..., None], colours @ GREY, scale


def draw_map(axes: Axes, values: np.ndarray, sums: np.ndarray, grid: int, shrunk: float) -> None:
    """Draw a map (H, W) on a scale of its own, with the ranks of its patch sums (grid * grid,); ``shrunk`` scales the numbers."""
    scale = scale_of(values)
    axes.imshow(np.ma.masked_invalid(values), cmap=DIVERGING, vmin=-scale, vmax=scale, extent=(0, grid, grid, 0), aspect="auto")
    _draw_grid(axes, grid)
    if grid <= MOST_PATCHES * shrunk:
        _draw_ranks(axes, sums, grid, shrunk)


def scale_of(values: np.ndarray) -> float:
    """Return the end of a map's colour scale, which the fraction :data:`WITHIN` of its finite values does not exceed."""
    magnitude = np.abs(values[np.isfinite(values)])
    return float((np.quantile(magnitude, WITHIN) or magnitude.max()) if len(magnitude) else 0.0) or 1.0  # 1 for a map of zeros


def _draw_grid(axes: Axes, grid: int) -> None:
    inner = np.arange(1, grid)
    axes.vlines(inner, 0, grid, color="#444444", linewidth=0.25)
    axes.hlines(inner, 0, grid, color="#444444", linewidth=0.25)


def _draw_ranks(axes: Axes, values: np.ndarray, grid: int, shrunk: float, background: np.ndarray | None = None) -> None:
    """Write each patch's rank in its upper left corner, 1 for the largest; ties share their mean rank, as in the score."""
    if not np.isfinite(values).all():
        return
    for patch, rank in enumerate(rankdata(-values)):
        row, column = divmod(patch, grid)
        lightness = 1.0 if background is None else background[row, column]
        _label(axes, column + 0.06, row + 0.32, f"{rank:g}", shrunk * min(4.6, 19 / grid), lightness, ha="left")


def _label(axes: Axes, x: float, y: float, text: str, size: float, lightness: float, **looks: Any) -> None:
    """Write small text in a patch: white on dark colours, otherwise black with a light outline, for maps of many colours."""
    if lightness < 0.5:
        axes.text(x, y, text, fontsize=size, va="baseline", color="white", **looks)
        return
    label = axes.text(x, y, text, fontsize=size, va="baseline", color="black", **looks)
    label.set_path_effects([mpl.patheffects.withStroke(linewidth=1.1, foreground="white", alpha=0.8)])


def as_text(value: float, digits: int) -> str:
    """Format with a true minus sign and without negative zero."""
    if not np.isfinite(value):
        return "undefined"
    text = f"{value:.{digits}f}"
    return (text[1:] if float(text) == 0 and text[0] == "-" else text).replace("-", "\N{MINUS SIGN}")


def _foot(layout: _Layout) -> None:
    width, height, top = layout.width, layout.height, layout.height - layout.foot + GAP
    inset = 0.06  # inches: half of a tick's label
    bar = layout.figure.add_axes(
        ((MARGIN + inset) / width, 1 - (top + 0.09) / height, (2 * layout.cell + GAP - 2 * inset) / width, 0.09 / height)
    )
    bar.imshow(np.linspace(-1, 1, 256)[None], cmap=DIVERGING, vmin=-1, vmax=1, extent=(-1, 1, 0, 1), aspect="auto")
    bar.set_yticks([])
    bar.set_xticks([-1, 0, 1], ["\N{MINUS SIGN}s", "0", "s"], fontsize=6)
    bar.tick_params(length=2, width=0.5, pad=1.5)
    bar.spines[:].set(visible=True, linewidth=0.5, color="#444444")
    for number, note in enumerate(layout.notes):
        layout.text(layout.beside, top + 0.07 + number * NOTE, note, layout.width - layout.beside, 6.0)


def fitted(text: str, width: float, size: float, weight: str, smallest: float = 5.0) -> tuple[str, float]:
    """Return a text and a font size at which it is at most ``width`` points wide: reduce the size first, then shorten the text."""
    found = text_width(text, 1, weight) * size
    if found <= width:
        return text, size
    smaller = max(smallest, size * width / found)
    while len(text) > 2 and text_width(text, 1, weight) * smaller > width:
        text = text[:-2].rstrip() + "…"
    return text, smaller
