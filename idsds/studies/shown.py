"""What a notebook shows of a study: tables, with intervals as small bars and an arrow for the better direction; scrolling; warnings."""

from __future__ import annotations

import html
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

#: Maximum number of rows shown, and the height at which a table scrolls.
ROWS, HEIGHT = 500, "28em"
ARROWS = {"higher is better": "↑", "lower is better": "↓"}
#: Width and height of an interval's bar, in CSS pixels.
BAR = (88, 8)
#: In JupyterLab long outputs of a notebook with a table scroll: text, findings and logs by their height, figures if wider than the cell.
SHEET = """<style>.jp-Notebook:has(.idsds-table) .jp-OutputArea-output:not(:has(.idsds-explorer)) {max-height: 40em; overflow: auto}
.jp-Notebook:has(.idsds-table) .jp-OutputArea-output.jp-RenderedImage {max-height: 95vh}
.jp-Notebook:has(.idsds-table) .jp-RenderedImage img {max-width: none}</style>"""


class Table(pd.DataFrame):
    """A frame that notebooks show with :func:`as_html`; results computed from it are plain frames."""

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    def _repr_html_(self) -> str:
        return as_html(self)


def intervals_of(table: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Return the columns of the lower and upper end by that of the value: ``x_low`` and ``x_high``, or ``low`` and ``high`` of the nearest
    number before them that lies between them in every row."""
    numbers = [name for name in map(str, table.columns) if pd.api.types.is_numeric_dtype(table[name])]
    found = {}
    for place, name in enumerate(numbers):
        high = name[:-3] + "high"
        if name.endswith("_low") and name.removesuffix("_low") in numbers and high in numbers:
            found[name.removesuffix("_low")] = (name, high)
        elif name == "low" and high in numbers:
            held = [one for one in numbers[:place] if not ((table[one] < table[name]) | (table[one] > table[high])).any()]
            found |= {held[-1]: (name, high)} if held else {}
    return found


def as_html(table: pd.DataFrame) -> str:
    """Return a table as HTML that uses the page's colours and scrolls if long.

    Intervals are drawn on one scale per column, with a tick at zero. Values that are equal in all rows, including the score's direction,
    are shown once below the table.
    """
    table = table.reset_index() if table.index.nlevels > 1 or table.index.name else table
    table = table.loc[:, ~table.columns.duplicated()]
    bars = intervals_of(table)
    ends = {name for pair in bars.values() for name in pair}
    same = [
        name
        for name in table
        if len(table) > 2 and not pd.api.types.is_numeric_dtype(table[name]) and table[name].astype(str).nunique() == 1
    ]
    arrow = ARROWS.get(str(table["direction"].iloc[0]), "") if "direction" in same else ""
    rows, columns = table.head(ROWS), {}
    for name in table:
        if name in ends or name in same:
            continue
        head = html.escape(str(name)) + (f" {arrow}" if arrow and (name == "mean" or name == next(iter(bars), "")) else "")
        columns[head] = _with_bars(table, rows, name, *bars[name]) if name in bars else [_cell(value) for value in rows[name]]
    text = pd.DataFrame(columns)
    with pd.option_context("display.max_colwidth", None, "display.html.border", 0):
        shown = text.to_html(escape=False, index=False, max_rows=None, max_cols=None)
    notes = [f"{html.escape(str(name))}: {_cell(table[name].iloc[0])}" for name in same]
    notes += [f"the first {ROWS} of {len(table)} rows"] if len(table) > ROWS else []
    below = f'<div style="opacity: .8">{"; ".join(notes)}</div>' if notes else ""
    return f'{SHEET}<div class="idsds-table" tabindex="0" style="max-height: {HEIGHT}; overflow: auto">{shown}</div>{below}'


def _cell(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else ""
    if isinstance(value, (float, np.floating)):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return html.escape(str(value))


def _with_bars(table: pd.DataFrame, rows: pd.DataFrame, value: str, low: str, high: str) -> list[str]:
    """Return the cells of a column with its interval: numbers, and below them a bar."""
    numbers = table[[value, low, high]].to_numpy(dtype=float)
    finite = numbers[np.isfinite(numbers)]
    least, most = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    (width, height), span = BAR, (most - least) or 1.0

    def at(number: float) -> str:
        return f"{2 + (number - least) / span * (width - 4):.1f}"

    zero = f'<path d="M{at(0)} 0V{height}" stroke="currentColor" opacity=".4"/>' if least < 0 < most else ""
    cells = []
    for middle, lower, upper in rows[[value, low, high]].to_numpy(dtype=float):
        if not np.isfinite([middle, lower, upper]).all():
            cells.append(_cell(float(middle)))
            continue
        label = f"{_cell(float(middle))} [{_cell(float(lower))}, {_cell(float(upper))}]"
        cells.append(
            f'<span style="white-space: nowrap">{label}</span><br>'
            f'<svg width="{width}" height="{height}" role="img" aria-label="{label}">{zero}'
            f'<path d="M{at(lower)} {height / 2}H{at(upper)}" stroke="currentColor" stroke-width="2"/>'
            f'<circle cx="{at(middle)}" cy="{height / 2}" r="2.5" fill="currentColor"/></svg>'
        )
    return cells


@contextmanager
def short_warnings() -> Iterator[None]:
    """In a notebook, show each warning once, as one line of plain output; elsewhere change nothing."""
    if not type(sys.stdout).__module__.startswith("ipykernel"):
        yield
        return
    told: set[str] = set()

    def tell(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        text = " ".join(str(message).split())
        if text not in told:
            told.add(text)
            print(f"note: {text}", flush=True)

    with warnings.catch_warnings():
        warnings.showwarning = tell
        yield
