"""Which texts of a figure cover each other: their rectangles, turned as they are, compared by the separating axis theorem."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

Boxes = list[tuple[str, np.ndarray]]


def text_boxes(figure: Figure) -> Boxes:
    """Every visible text with the four corners of its rectangle in pixels, (4, 2)."""
    figure.canvas.draw()
    found = []
    beyond = {label for axes in figure.axes for label in axes.get_xticklabels() if not _in_view(label.get_position()[0], axes.get_xlim())}
    beyond |= {label for axes in figure.axes for label in axes.get_yticklabels() if not _in_view(label.get_position()[1], axes.get_ylim())}
    bare = [axes for axes in figure.axes if not (axes.axison and axes.get_visible())]
    beyond |= {label for axes in bare for label in (*axes.get_xticklabels(), *axes.get_yticklabels())}
    for text in figure.findobj(Text):
        if not text.get_visible() or not text.get_text().strip() or text in beyond:
            continue
        angle = text.get_rotation()
        box = text.get_window_extent()
        if angle not in (0, 90):
            # The corner about which it is turned stays where it is: lay it flat, measure, turn the rectangle.
            text.set_rotation(0)
            flat, anchor = text.get_window_extent(), text.get_transform().transform(text.get_position())
            text.set_rotation(angle)
            turn = np.array([[np.cos(a := np.radians(angle)), -np.sin(a)], [np.sin(a), np.cos(a)]])
            found.append((text.get_text(), (flat.corners()[[0, 1, 3, 2]] - anchor) @ turn.T + anchor))
        elif box.width and box.height:
            found.append((text.get_text(), box.corners()[[0, 1, 3, 2]]))
    return found


def overlaps(boxes: Boxes, slack: float = 0.5) -> list[tuple[str, str]]:
    """Pairs of texts whose rectangles share more than ``slack`` pixels in every direction."""
    return [(a, b) for (a, first), (b, second) in combinations(boxes, 2) if _overlap(first, second, slack)]


def outside(figure: Figure, boxes: Boxes) -> list[str]:
    """Texts that the border of the figure cuts."""
    size = figure.get_size_inches() * figure.dpi
    return [text for text, corners in boxes if (corners < -0.5).any() or (corners > size + 0.5).any()]


def _in_view(value: float, limits: tuple[float, float]) -> bool:
    return min(limits) <= value <= max(limits)


def _overlap(first: np.ndarray, second: np.ndarray, slack: float) -> bool:
    for corners in (first, second):
        for side in (corners[1] - corners[0], corners[3] - corners[0]):
            axis = side / np.linalg.norm(side)
            a, b = first @ axis, second @ axis
            if min(a.max(), b.max()) - max(a.min(), b.min()) <= slack:
                return False
    return True


def texts(figure: Figure) -> list[str]:
    """Every text of a figure."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def edge_colours(axes: Axes) -> list:
    """Colours of the intervals and of the edges of the marks in a panel."""
    lines = [line for line in axes.lines if line.get_marker() not in ("", "None", None)]
    bars = [line for line in axes.lines if line not in lines and len(set(line.get_ydata())) == 1 and line.get_linewidth() >= 0.9]
    edges = [line.get_markeredgecolor() for line in lines] + [line.get_color() for line in bars]
    return edges + [colour for found in axes.collections for colour in found.get_edgecolor()]
