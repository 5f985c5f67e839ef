"""Lines of several methods in one panel: the family's colour and marker, and a separate dash pattern for each of its methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.lines import Line2D

from idsds.plots.style import STYLES, look_of, style_of

DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (6, 1, 1, 1, 1, 1)))


def line_looks(families: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return keyword arguments of ``Axes.plot`` for each method; methods of one family differ by dashes, so that grey suffices."""
    looks, used = {}, dict.fromkeys(STYLES, 0)
    for method, family in families.items():
        key = style_of(method, family)
        looks[method] = look_of(method, family).line(4.5, linestyle=DASHES[used[key] % len(DASHES)], linewidth=1.2)
        used[key] += 1
    return looks


def line_handles(looks: Mapping[str, dict[str, Any]]) -> list[Line2D]:
    """Return the entries of a legend, one per method."""
    return [Line2D([], [], label=method, **look) for method, look in looks.items()]
