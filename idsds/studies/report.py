"""A self-contained report: one HTML file with figures, findings, sortable tables, settings, versions, undefined scores and the citation.

It needs no network or other files, and prints with all tables open. All text from records is escaped, because names are the user's.
"""

from __future__ import annotations

import mimetypes
import re
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment

from idsds import plots
from idsds.common import paths
from idsds.common.files import atomic, read_json
from idsds.common.hashing import versions
from idsds.evaluation.manifest import MANIFEST
from idsds.evaluation.records import Run, load_records
from idsds.statistics import rank
from idsds.studies.rank_methods import SCORES, with_drops

#: Rows shown of a table; the whole table is saved beside the figure.
ROWS = 500
#: Bytes above which a vector figure is shown as pixels.
HEAVY = 3_000_000

#: The page's template.
PAGE = Path(__file__).with_suffix(".html")


def report(folders: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write the report of some runs and return its file.

    Args:
        folders: folders of runs, or of a profile's runs (``runs/mnist5k``).
        output: the file; None for ``report.html`` in the first folder.

    Raises:
        FileNotFoundError: for a folder without any run.
        OldRecordsError, DamagedFileError: as :func:`idsds.load_records` does.
    """
    sections, resolved = [], [paths.resolve(folder) for folder in folders]
    for folder in resolved:
        if not (members := _runs_in(folder)):
            raise FileNotFoundError(f"no run in {str(folder)!r}: neither records nor a figure are there")
        sections += [_section(member) for member in members]
    title = "Attribution quality: " + ", ".join(dict.fromkeys(folder.name for folder in resolved))
    environment = Environment(autoescape=True, trim_blocks=True)
    page = environment.from_string(PAGE.read_text(encoding="utf-8")).render(title=title, sections=sections, version=versions()["idsds"])
    path = paths.resolve(output) if output is not None else resolved[0] / "report.html"
    with atomic(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def _runs_in(folder: Path) -> list[Path]:
    """Return a run's own folder, or the folders of a profile's runs."""
    if (folder / MANIFEST).is_file() or _stem(folder).with_suffix(".png").is_file():
        return [folder]
    return [path for path in sorted(folder.glob("*/")) if any(path.rglob(MANIFEST)) or _stem(path).with_suffix(".png").is_file()]


def _stem(folder: Path) -> Path:
    """Return a run's figures, without their file extension."""
    return paths.figures_of(folder) / folder.name


def figure_files(stem: Path, kind: str = "png") -> list[Path]:
    """Return a figure's pages: ``stem.png``, ``stem_2.png`` and so on; empty if there is no figure."""
    first = stem.with_name(f"{stem.name}.{kind}")
    more = [path for path in stem.parent.glob(f"{stem.name}_*.{kind}") if re.fullmatch(r"\d+", path.stem[len(stem.name) + 1 :])]
    return [first, *sorted(more, key=lambda path: int(path.stem.rpartition("_")[2]))] if first.is_file() else []


def table_files(stem: Path) -> list[Path]:
    """Return a figure's tables, ``stem.csv`` and ``stem_<name>.csv``, except those of a figure with a longer name."""
    longer = [path.stem for path in stem.parent.glob(f"{stem.name}_*.md")]
    more = [path for path in sorted(stem.parent.glob(f"{stem.name}_*.csv")) if not any(path.stem.startswith(name) for name in longer)]
    return [path for path in (stem.with_name(f"{stem.name}.csv"), *more) if path.is_file()]


def _section(folder: Path) -> dict[str, Any]:
    """Return a run's values for the template."""
    stem, manifests = _stem(folder), sorted(folder.rglob(MANIFEST))
    runs = [Run.open(path.parent) for path in manifests if read_json(path).get("status") == "complete"]
    figures = [_address(path) for path in _sharpest(folder, stem)]
    named = {path.stem[len(stem.name) + 1 :].replace("_", " "): path for path in table_files(stem)} if figures else {}
    tables = [(name, _frame(_read(path))) for name, path in named.items()]
    if not tables and not figures and (folder / MANIFEST).is_file():  # no study made it
        ranking = _ranking(folder, runs[0])
        tables = [("", _frame(ranking))]
        figures = [_drawn(folder, runs[0], ranking)]
    finding = stem.with_name(f"{stem.name}.md")
    lines, verdicts = _findings(finding.read_text(encoding="utf-8")) if finding.is_file() and figures else ([], None)
    content = {"title": folder.name, "figures": figures, "findings": lines, "verdicts": verdicts, "tables": tables}
    return content | {"runs": [_run(run, str(run.folder.relative_to(folder.parent).as_posix())) for run in runs]}


def _ranking(folder: Path, run: Run) -> pd.DataFrame:
    """Return the ranking of a run, with the share of each model's patches whose drop is above the noise where its protocol has drops."""
    ranking = rank(folder)
    if "drops" not in run.content().columns:
        return ranking
    by = [name for name in ("grid",) if name in ranking]
    first = ranking.drop_duplicates("model")[["model", "method"]].itertuples(index=False, name=None)
    columns = ["model", "seed", "image_id", "drops", *by]
    parts = [load_records(folder, columns, models=[model], methods=[method]) for model, method in first]
    return with_drops(ranking, pd.concat(parts), by)


def _sharpest(folder: Path, stem: Path) -> list[Path]:
    """Return a figure's pages as vectors, or as pixels if vectors are missing, outdated or large."""
    pages = {path.stem: path for path in figure_files(stem)}
    for vector in figure_files(folder / stem.name, "svg"):
        pixels = pages.get(vector.stem)
        if pixels and vector.stat().st_mtime >= pixels.stat().st_mtime - 60 and vector.stat().st_size <= HEAVY:
            pages[vector.stem] = vector
    return list(pages.values())


def _address(path: Path) -> str:
    return f"data:{mimetypes.guess_type(path.name)[0]};base64,{b64encode(path.read_bytes()).decode()}"


def _drawn(folder: Path, run: Run, ranking: pd.DataFrame) -> str:
    """Return the ranking of records without a study's figure."""
    manifest, grid = run.manifest, run.manifest["settings"].get("grid")
    score, patches = SCORES.get(manifest["protocol"], manifest["protocol"]), grid**2 if isinstance(grid, int) else 16
    figure = plots.rank_methods(ranking, manifest["families"], n_patches=patches, score=score, columns=2)
    (path,) = plots.save(figure, folder / "ranking", {}, formats=["svg"])
    return _address(path)


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=[""])
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def _frame(table: pd.DataFrame) -> dict[str, Any]:
    """Return a table for the template, each cell with its sort key."""
    said = f"{len(table):,} rows" + (f", of which the first {ROWS} are shown" if len(table) > ROWS else "")
    rows = [[_cell(value) for value in row] for row in table.head(ROWS).itertuples(index=False)]
    return {"head": list(map(str, table.columns)), "rows": rows, "said": said}


def _cell(value: Any) -> tuple[str, str]:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "", "\N{EN DASH}"
    if isinstance(value, (float, np.floating)):
        return repr(float(value)), f"{value:.4g}".replace("-", "\N{MINUS SIGN}")
    return str(value), str(value)


def _findings(text: str) -> tuple[list[str], dict[str, Any] | None]:
    """Return the sentences and the table of :meth:`idsds.studies.base.Findings.markdown`."""
    lines = [line for line in text.splitlines() if line.strip()]
    rows = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in lines if line.startswith("|")]
    cells = [[cell.strip().replace("\\|", "|") for cell in row] for row in rows]
    verdicts = _frame(pd.DataFrame(cells[2:], columns=cells[0])) if len(cells) > 2 else None
    return [line.removeprefix("- ") for line in lines if not line.startswith("|")], verdicts


def _run(run: Run, name: str) -> dict[str, Any]:
    manifest = run.manifest
    keys = ("dataset", "protocol", "direction", "target", "seeds", "device", "precision", "channels_last", "compiled")
    settings = {**{key: manifest[key] for key in keys}, **manifest["settings"]}
    nets = {f"net {entry['model']}, seed {entry['seed']}": entry["weights"] for entry in manifest["models"]}
    skipped = len(manifest["skipped"])
    return {
        "name": name,
        "counts": f"{manifest['records']:,} records of {manifest['images']:,} images, {manifest['undefined']:,} scores undefined"
        + (f"; {skipped} images could not be read" if skipped else ""),
        "settings": _pairs("setting", {**settings, **nets}),
        "versions": _pairs("package", manifest["versions"]),
        "undefined": _frame(run._read(run.files("undefined")[0], 0, None).to_pandas()),
        "left_out": _frame(pd.DataFrame(manifest["left_out"])),
    }


def _pairs(what: str, values: dict[str, Any]) -> dict[str, Any]:
    return _frame(pd.DataFrame({what: list(values), "value": [str(value) for value in values.values()]}))
