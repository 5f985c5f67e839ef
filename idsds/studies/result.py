"""What a study returns: its plan with the costs, its findings, and its tables with their figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from idsds.common import paths
from idsds.evaluation.costs import seconds_by_the_clock, spell
from idsds.plots.style import sharpen
from idsds.studies.shown import Table, as_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: Sentences of a study's findings.
SENTENCES = 3
#: The columns of a plan that are summed over the pieces of work.
SUMS = ("files", "epochs", "images_left", "forward", "backward", "steps", "seconds_left", "hours", "disk_mb")
#: The columns of a plan of which a group's minimum or maximum is shown.
EXTREMES = {"images_per_second": "min", "memory_gb": "max"}


@dataclass(frozen=True, eq=False)
class Plan:
    """What a study will do and what that costs; a notebook shows it as a table with its sum below.

    Args:
        table: one row per piece of work, with some of the columns :data:`SUMS`. A training that several runs need is listed once.
        by: the columns whose groups get a row.
    """

    table: pd.DataFrame
    by: tuple[str, ...] = ("model",)

    def __post_init__(self) -> None:
        if "checkpoint" in self.table:
            trained = self.table["checkpoint"].fillna("") != ""
            object.__setattr__(self, "table", self.table[~(trained & self.table.duplicated("checkpoint"))])

    @property
    def summary(self) -> pd.DataFrame:
        """The sums per group of ``by``, and the lowest speed and the largest memory where they were measured."""
        groups = self.table.groupby(list(self.by), sort=False)
        sums = groups[[name for name in SUMS if name in self.table]].sum(min_count=1)
        return sums.join([groups[name].agg(how) for name, how in EXTREMES.items() if name in self.table]).dropna(axis=1, how="all")

    @property
    def total(self) -> str:
        """The sums in words: passes, training, time and disk, as far as the plan knows them."""
        total = {name: float(pd.to_numeric(self.table[name]).sum()) for name in SUMS if name in self.table}
        parts = []
        if "forward" in self.table:
            parts.append(f"{total['forward']:,.0f} forward and {total['backward']:,.0f} backward passes")
            if "epochs" in self.table and (stages := int(self.table["epochs"].notna().sum())):
                parts.append(f"{stages} training stage(s) that are not cached")
        elif "images_left" in self.table:
            parts.append(f"{total['images_left']:,.0f} images forward and backward in training")
        work = {"files": "files to open", "steps": "steps of training"}
        parts += [f"{total[name]:,.0f} {what}" for name, what in work.items() if total.get(name)]
        if seconds := seconds_by_the_clock(self.table):
            parts.append(f"about {spell(seconds)} left")
        if total.get("disk_mb"):
            parts.append(f"{total['disk_mb']:,.1f} MB on disk")
        return ", ".join(parts)

    def __repr__(self) -> str:
        return f"{self.summary.to_string()}\nIn all: {self.total}."

    def _ipython_display_(self) -> None:
        from IPython.display import display  # not needed, and slow to import, outside notebooks

        display(Table(self.summary))
        print(f"In all: {self.total}.", flush=True)  # in the terminal, too, where papermill shows what is printed


@dataclass(frozen=True, eq=False)
class Findings:
    """What a study found: at most three short sentences, and a table of verdicts.

    Args:
        verdicts: one row per claim (see :mod:`idsds.statistics.verdicts`), or None where the study tests no claim.
        scope: what the claims are about, shown last.

    Raises:
        ValueError: for more than three sentences.
    """

    sentences: Sequence[str]
    verdicts: pd.DataFrame | None = None
    scope: str = ""

    def __post_init__(self) -> None:
        if len(self.sentences) > SENTENCES:
            raise ValueError(f"{len(self.sentences)} sentences; a study's findings are at most {SENTENCES}, the rest belongs in a table")

    def markdown(self) -> str:
        """Return the sentences as a list, the verdicts as a table below them, and the scope."""
        parts = ["\n".join(f"- {sentence.strip()}" for sentence in self.sentences)]
        if self.verdicts is not None and not self.verdicts.empty:
            rows = [list(map(str, self.verdicts.columns)), ["---"] * len(self.verdicts.columns)]
            rows += [[_cell(value) for value in row] for row in self.verdicts.itertuples(index=False)]
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
        return "\n\n".join(filter(None, [*parts, self.scope]))

    __repr__ = _repr_markdown_ = markdown

    def _repr_html_(self) -> str:
        """Return the same for a notebook in a browser, where the verdicts' intervals are bars too."""
        items = "".join(f"<li>{escape(sentence.strip())}</li>" for sentence in self.sentences)
        table = "" if self.verdicts is None or self.verdicts.empty else as_html(self.verdicts)
        return f"<ul>{items}</ul>{table}<p>{escape(self.scope)}</p>"


def listed(items: Iterable[str], most: int = 4) -> str:
    """Join items for a sentence: the first few, and how many more a table has."""
    items = list(items)
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value).replace("|", "\\|")


@dataclass(frozen=True, eq=False)
class Result:
    """What a study computed.

    Args:
        stem: figures and tables are saved as ``stem.png``, ``stem.pdf``, ``stem.csv``, ``stem_<name>.csv`` and ``stem.md``.
        tables: by name; the main one is ``""``.
        draw: draws the figure from the tables; one function per page where there are several.
        records: the records that the tables were computed from, or whatever else the checks at the end of a notebook need.
    """

    stem: Path
    tables: Mapping[str, pd.DataFrame]
    findings: Findings
    draw: Callable[[], Figure | Sequence[Figure]] | Sequence[Callable[[], Figure]]
    records: Any = field(default=None, repr=False)

    @property
    def table(self) -> pd.DataFrame:
        """The main table."""
        return Table(self.tables[""])

    def plot(self) -> Figure | Sequence[Figure]:
        """Draw the figure, or its pages."""
        sharpen()
        return self.draw() if callable(self.draw) else [page() for page in self.draw]

    def save(self, figure: Figure | Sequence[Figure]) -> list[Path]:
        """Save a figure with the tables and findings beside it, and return the files."""
        from idsds import plots

        tables = {name: table for name, table in self.tables.items() if not name or len(table)}
        files = plots.save(figure, self.stem, tables, finding=self.findings.markdown())
        if (run := paths.run_of(self.stem)).is_dir():  # in vectors, for the report
            plots.save(figure, run / self.stem.name, {}, formats=("svg",))
        print(f"figure: {files[0]}", flush=True)
        return files
