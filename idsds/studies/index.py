"""The notebook to start from: a card for each of the others, made from their headings, figures, findings, times and params."""

from __future__ import annotations

import itertools
from pathlib import Path

import nbformat

from idsds.common import paths
from idsds.common.files import atomic
from idsds.studies.reproduce import Run, minutes_of, runs_of

PROFILE, PAPER = "mnist5k", "imagenet"
HEAD = """# Start here

A notebook for every figure: open one, *Run > Run All Cells*, and it ends as a small test of itself; its second cell has all parameters.
The cards show the embedded digits (`make reproduce`). Times are of two cores, from an empty cache, in the order of that command.

1. **The ranking**, which attribution method to trust: [rank_methods](rank_methods.ipynb), or `make rank`.
2. **Your own net, method or images:** [bring your own](../docs/bring-your-own.md).
3. **Image by image:** run [rank_methods](rank_methods.ipynb), then `idsds.explore(study.output)` in a new cell.
4. **A report to send:** `python -m idsds report runs/mnist5k`."""


def card(runs: list[Run]) -> str:
    """Write the card of a notebook: its runs on the digits are those of its params files."""
    notebook, minutes = runs[0].notebook, minutes_of(PROFILE)
    lines = [f"## [{Run(notebook.with_suffix('.yaml'), notebook).title}]({notebook.name})"]
    for run in runs:
        finding = run.figures.with_suffix(".md")
        first = finding.read_text(encoding="utf-8").strip().splitlines()[0].removeprefix("- ") if finding.is_file() else "not made yet."
        lines.append(f"- {run.variant}: {first}" if run.variant else first)
    known = [minutes[run.stem] for run in runs if run.stem in minutes]
    spent = f"{max(1, round(sum(known)))} min on two cores" if len(known) == len(runs) else "time not known yet"
    paper = [run.stem for run in runs if (paths.root() / "params" / PAPER / f"{run.stem}.yaml").is_file()]
    stem = next((run.stem for run in runs if run.figures.with_suffix(".png").is_file()), None)
    figure = f'<img src="../figures/{PROFILE}/{stem}.png" alt="{notebook.stem} on the digits" width="520">' if stem else ""
    lines += ["", *([figure, ""] if figure else [])]
    lines.append(
        f"About {spent}; at the paper's scale: `python -m idsds reproduce {PAPER} {' '.join(paper)}`" if paper else f"About {spent}"
    )
    return "\n".join(lines)


def index() -> str:
    """Return the notebook as text."""
    runs = sorted(runs_of(PROFILE), key=lambda run: run.notebook.stem != "rank_methods")  # the main one first, the others as they are made
    cards = [card(list(some)) for _, some in itertools.groupby(runs, key=lambda run: run.notebook)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text) for text in (HEAD, *cards)])
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"card-{number}"  # the same every time
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return nbformat.writes(notebook) + "\n"


def write() -> Path:
    """Write ``notebooks/index.ipynb`` if its content has changed, and return its path."""
    path, text = paths.root() / "notebooks" / "index.ipynb", index()
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        with atomic(path) as partial:
            partial.write_text(text, encoding="utf-8")
    return path
