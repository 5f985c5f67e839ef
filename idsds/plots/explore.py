"""One image explained by several methods: the page of :func:`idsds.explore`, as a figure and, for the screen, as HTML.

The HTML takes a few milliseconds, is as sharp as the screen allows, and works with screen readers; the figure is for saving and printing.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from PIL import Image
from scipy.stats import rankdata

from idsds.plots.gallery import MOST_PATCHES, Example, as_text, decision_of, draw_drops, draw_map, drops_over_image, fitted, scale_of
from idsds.plots.style import DIVERGING, bare, look_of, styled

WIDTH, HEAD, CELL, ROW, TITLE, STRIP, ACROSS = 9.6, 0.42, 2.2, 1.42, 0.34, 1.5, 6  # inches, and maps in a line


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """A thumbnail with a caption: an image's id, its score, and pixels (H, W, 3) in [0, 1], or None if unknown."""

    image_id: str
    score: float
    picture: np.ndarray | None


@styled
def explore(example: Example, method: str, ranking: pd.DataFrame, worst: Sequence[Thumbnail], best: Sequence[Thumbnail]) -> Figure:
    """Draw everything that the explorer shows on one page.

    Args:
        example: the image; where it has no drops (``drops`` is empty) their picture and the scatter of ranks are left out.
        method: one of ``example.maps``, with its map and scatter beside the drops; the other maps are below.
        ranking: ``method``, ``mean``, ``low``, ``high``, ``count``, ``nan`` of the model's methods, best first.
        worst, best: the images with the method's worst and best scores, up to four each.
    """
    beside, lines = 2.7, [_line(row) for row in ranking.itertuples()]
    height = max(_height(example, method) + STRIP, 0.5 + 0.15 * len(lines))
    figure = Figure(figsize=(WIDTH + beside, height))
    left, right = figure.subfigures(1, 2, width_ratios=[beside, WIDTH], wspace=0)
    top, bottom = right.subfigures(2, 1, height_ratios=[height - STRIP, STRIP], hspace=0)
    left.text(0.04, 1 - 0.25 / height, f"Ranking on {example.model}", fontsize=8, weight="bold", parse_math=False)
    for number, (row, line) in enumerate(zip(ranking.itertuples(), lines, strict=True)):
        weight = "bold" if row.method == method else "normal"
        place = 1 - (0.48 + 0.15 * number) / height
        left.text(0.04, place, fitted(row.method, 62, 6.5, weight)[0], fontsize=6.5, weight=weight, parse_math=False)
        left.text(0.40, place, line, fontsize=6.5, weight=weight, parse_math=False)
    _view(top, (WIDTH, height - STRIP), example, method)
    _strip(bottom, (WIDTH, STRIP), method, worst, best)
    return figure


def _line(row: pd.Series) -> str:
    text = f"{as_text(row.mean, 2)} [{as_text(row.low, 2)}, {as_text(row.high, 2)}] of {row.count}"
    return text + (f", {row.nan} undefined" if row.nan else "")


def _height(example: Example, method: str) -> float:
    return HEAD + TITLE + CELL + (TITLE + ROW) * -(-len([name for name in example.maps if name != method]) // ACROSS) + 0.3


def _view(figure: FigureBase, size: tuple[float, float], example: Example, method: str) -> None:
    width, height = size
    head = f"{example.image_id}: {decision_of(example)}; {example.model} on {example.dataset}"
    head, points = fitted(head, 72 * (width - 0.3), 9, "bold")
    figure.text(0.12 / width, 1 - 0.25 / height, head, fontsize=points, weight="bold", parse_math=False)
    column = (width - 0.24) / 4

    def place(left: float, top: float, side: float, title: str, weight: str = "normal") -> Axes:
        text, points = fitted(title, 72 * (side + 0.1), 7.5, weight)
        figure.text(left / width, 1 - (top - 0.06) / height, text, fontsize=points, weight=weight, va="baseline", parse_math=False)
        return figure.add_axes((left / width, 1 - (top + side) / height, side / width, side / height))

    top, grid = HEAD + TITLE, len(example.drops)
    picture = bare(place(0.12, top, CELL, "image"))
    picture.imshow(example.picture, vmin=0, vmax=1, aspect="auto")
    if grid:
        draw_drops(bare(place(0.12 + column, top, CELL, "drop when a patch is deleted; rank, 1 is largest")), example, 1.6)
        _scatter(place(0.42 + 3 * column, top, CELL - 0.3, ""), example, method)
    _map(bare(place(0.12 + 2 * column, top, CELL, _titled(example, method), "bold")), example, method, 1.6)
    for number, name in enumerate(name for name in example.maps if name != method):
        line, place_in_line = divmod(number, ACROSS)
        left, below = 0.12 + place_in_line * (width - 0.24) / ACROSS, top + CELL + TITLE + line * (ROW + TITLE)
        _map(bare(place(left, below, ROW, _titled(example, name))), example, name, 1.0)
    legend = "Maps: orange for the class, blue against it, each on its own scale"
    legend += "; small numbers: rank of the patch's sum of attribution, 1 is largest." if grid else "."
    figure.text(0.12 / width, 0.08 / height, legend, fontsize=7, parse_math=False)


def _titled(example: Example, method: str) -> str:
    return f"{method}: {as_text(example.records.loc[method, 'score'], 2)}"


def _map(axes: Axes, example: Example, method: str, scale: float) -> None:
    grid = len(example.drops)
    sums = example.records.loc[method, "patch_sums"] if grid else np.full(1, np.nan)
    draw_map(axes, example.maps[method], np.asarray(sums, dtype=float), grid or 1, scale)


def _scatter(axes: Axes, example: Example, method: str) -> None:
    """Draw the ranks whose correlation is the score, in the method's style; the axes stay empty if it is undefined."""
    drops, sums = example.drops.ravel(), np.asarray(example.records.loc[method, "patch_sums"], dtype=float)
    look, last = look_of(method, example.records.loc[method, "family"]), len(drops)
    axes.plot([1, last], [1, last], color="#BBBBBB", linewidth=0.8, zorder=0)
    if np.isfinite(drops).all() and np.isfinite(sums).all():
        axes.plot(rankdata(-drops), rankdata(-sums), **look.line(5, linestyle=""))
    score = as_text(example.records.loc[method, "score"], 2)
    axes.set_title(f"{example.score} {score}: rank correlation", fontsize=7.5, loc="left", pad=4)
    axes.set(xlim=(0, last + 1), ylim=(0, last + 1))
    axes.set_xlabel("rank of the patch by its drop", fontsize=7, labelpad=1)
    axes.set_ylabel("rank by its sum of attribution", fontsize=7, labelpad=1)
    ticks = sorted({1, *range(len(example.drops), last + 1, max(1, len(example.drops)))})
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.tick_params(labelsize=6.5, length=2)


def _strip(figure: FigureBase, size: tuple[float, float], method: str, worst: Sequence[Thumbnail], best: Sequence[Thumbnail]) -> None:
    width, height = size
    step, side = (width - 0.3) / 8, 0.82
    for start, label, shown in ((0, "worst", worst), (4, "best", best)):
        left = 0.12 + start * step + (0.06 if start else 0)
        head = fitted(f"{label} images of {method}", 72 * 4 * step, 8, "bold")[0]
        figure.text(left / width, 1 - 0.16 / height, head, fontsize=8, weight="bold", parse_math=False)
        for number, one in enumerate(shown):
            here = left + number * step
            axes = figure.add_axes((here / width, 1 - (0.24 + side) / height, side / width, side / height), xticks=[], yticks=[])
            if one.picture is not None:
                axes.imshow(one.picture, vmin=0, vmax=1, aspect="auto")
            name, points = fitted(one.image_id, 72 * (step - 0.08), 6.5, "normal")
            for below, text in ((0.36, name), (0.49, as_text(one.score, 2))):
                figure.text(here / width, 1 - (side + below) / height, text, fontsize=points, parse_math=False)


#: A white card, so that it reads the same in a dark theme.
SHEET = """<style>
.idsds-card{background:#fff;color:#111;padding:8px 12px;border-radius:6px;font:13px/1.35 sans-serif;max-width:1100px;box-sizing:border-box}
.idsds-card h4{margin:0 0 6px;font-size:14px;overflow-wrap:anywhere}.idsds-row{display:flex;flex-wrap:wrap;gap:12px}
.idsds-card figure{margin:0 0 6px}.idsds-card figcaption{font-size:12px;height:1.5em;overflow:hidden;
text-overflow:ellipsis;white-space:nowrap}
.idsds-pic{position:relative;border:1px solid #444}.idsds-pic img{display:block;width:100%;height:100%;margin:0;image-rendering:pixelated}
.idsds-pic div{position:absolute;inset:0;display:grid}.idsds-pic i{position:relative;box-shadow:0 0 0 .5px #777;font-style:normal;
text-align:center;font-size:13px;padding-top:26%;text-shadow:0 0 2px #fff,0 0 2px #fff}.idsds-pic i.dark{color:#fff;text-shadow:none}
.idsds-pic b{position:absolute;left:2px;top:0;font-weight:normal;font-size:11px}.idsds-card p{margin:4px 0 0;font-size:12px}
</style>"""


def card(example: Example, method: str, notes: Sequence[str] = ()) -> str:
    """Write the upper part of :func:`explore`, without the ranking, as HTML; ``notes`` say what differs from the records."""
    grid, head = len(example.drops), f"{example.image_id}: {decision_of(example)}; {example.model} on {example.dataset}"
    parts = [_figure("image", _png(example.picture), 230, ())]
    if grid:
        shaded, lightness, scale = drops_over_image(example)
        ranks = _ranked(example.drops.ravel())
        cells = [
            f"<i{' class=dark' if light < 0.5 else ''}><b>{rank}</b>{as_text(drop, 2 if scale < 10 else 1)}</i>"
            for rank, drop, light in zip(ranks, example.drops.ravel(), lightness.ravel(), strict=True)
        ]
        parts.append(_figure("drop when a patch is deleted; rank", _png(shaded), 230, cells))
    parts.append(_map_figure(example, method, 230))
    if grid:
        parts.append(_scatter_svg(example, method))
    others = [_map_figure(example, name, 140) for name in example.maps if name != method]
    legend = "Maps: orange for the class, blue against it, each on its own scale. Small numbers: rank of a patch, 1 is largest."
    said = "".join(f"<p><b>{escape(note)}</b></p>" for note in notes)
    body = f'<div class="idsds-row">{"".join(parts)}</div><div class="idsds-row">{"".join(others)}</div>'
    return f'{SHEET}<div class="idsds-card"><h4>{escape(head)}</h4>{body}<p>{legend}</p>{said}</div>'


def strip_card(thumbnails: Sequence[Thumbnail]) -> str:
    """Return a row of thumbnails as HTML, one column for each button below."""
    cells = (
        f'<figure style="width:84px">{_picture(one.image_id, _png(one.picture) if one.picture is not None else "", 84, ())}'
        f"<figcaption title={_quoted(one.image_id)}>{escape(one.image_id)}</figcaption></figure>"
        for one in thumbnails
    )
    return f'{SHEET}<div class="idsds-card"><div class="idsds-row" style="flex-wrap:nowrap;gap:4px">{"".join(cells)}</div></div>'


def _quoted(text: str) -> str:
    return f'"{escape(text, quote=True)}"'


def _png(values: np.ndarray) -> str:
    """Return an image (H, W, 3) or (H, W, 4) in [0, 1] as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray((np.clip(values, 0, 1) * 255).round().astype(np.uint8)).save(buffer, "png", compress_level=1)
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode()


def _picture(label: str, source: str, side: int, cells: Sequence[str]) -> str:
    grid = round(len(cells) ** 0.5)
    above = f'<div aria-hidden=true style="grid:repeat({grid},1fr)/repeat({grid},1fr)">{"".join(cells)}</div>' if cells else ""
    return f'<div class="idsds-pic" style="width:{side}px;height:{side}px"><img alt={_quoted(label)} src="{source}">{above}</div>'


def _figure(label: str, source: str, side: int, cells: Sequence[str], title: str = "") -> str:
    caption = f'<figcaption style="width:{side}px" title={_quoted(label)}>{title or escape(label)}</figcaption>'
    return f"<figure>{caption}{_picture(label, source, side, cells)}</figure>"


def _map_figure(example: Example, method: str, side: int) -> str:
    values, grid, score = example.maps[method], len(example.drops), as_text(example.records.loc[method, "score"], 2)
    coloured = DIVERGING(np.ma.masked_invalid(values / scale_of(values) + 1) / 2)[..., :3]
    cells: list[str] = []
    if grid and grid <= MOST_PATCHES * side / 100:
        cells = [f"<i><b>{rank}</b></i>" for rank in _ranked(np.asarray(example.records.loc[method, "patch_sums"], dtype=float))]
    return _figure(f"{method}, {example.score} {score}", _png(coloured), side, cells, f"{escape(method)} <b>{score}</b>")


def _ranked(values: np.ndarray) -> Iterator[str]:
    """Return the rank of each value, 1 for the largest; empty if ranks are undefined."""
    return (f"{rank:g}" for rank in rankdata(-values)) if np.isfinite(values).all() else ("" for _ in values)


def _scatter_svg(example: Example, method: str) -> str:
    drops, sums = example.drops.ravel(), np.asarray(example.records.loc[method, "patch_sums"], dtype=float)
    last, ink = len(drops), look_of(method, example.records.loc[method, "family"]).ink
    label = f"{example.score} {as_text(example.records.loc[method, 'score'], 2)}: rank correlation"
    ends = ['<line x1="30" x2="226" y1="200" y2="200" stroke="#444"/><line x1="30" x2="30" y1="4" y2="200" stroke="#444"/>']

    def at(x: float, y: float) -> tuple[float, float]:
        return 30 + 190 * x / (last + 1), 200 - 190 * y / (last + 1)

    (left, low), (right, high) = at(1, 1), at(last, last)
    ends.append(f'<line x1="{left:.1f}" y1="{low:.1f}" x2="{right:.1f}" y2="{high:.1f}" stroke="#bbb"/>')
    for tick in sorted({1, *range(len(example.drops), last + 1, len(example.drops))}):
        ends.append(f'<text x="{at(tick, 0)[0]:.1f}" y="212" text-anchor="middle">{tick}</text>')
        ends.append(f'<text x="26" y="{at(0, tick)[1] + 3:.1f}" text-anchor="end">{tick}</text>')
    if np.isfinite(drops).all() and np.isfinite(sums).all():
        places = [at(x, y) for x, y in zip(rankdata(-drops), rankdata(-sums), strict=True)]
        ends += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{ink}"/>' for x, y in places]
    ends.append('<text x="125" y="226" text-anchor="middle">rank of the patch by its drop</text>')
    ends.append('<text transform="translate(9 105) rotate(-90)" text-anchor="middle">rank by its sum of attribution</text>')
    drawn = f'<svg role="img" aria-label={_quoted(label)} width="230" height="230" font-size="10" fill="#111">{"".join(ends)}</svg>'
    return f'<figure><figcaption style="width:230px">{escape(label)}</figcaption>{drawn}</figure>'
