"""Scores as a matrix: one row per image (and training seed), one column per model, setting and method."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from idsds.common.registry import check_name

if TYPE_CHECKING:
    from idsds.evaluation.records import Content, Part

#: A frame of records, or the folder of a run.
Records = pd.DataFrame | str | os.PathLike[str]
#: Number of score columns read from a folder at a time, which bounds memory: 50,000 images x 96 are 38 MB. No result depends on it.
COLUMNS_AT_ONCE = 96
#: Values of the column ``direction`` of records and tables; records without it count as the first.
HIGHER, LOWER = "higher is better", "lower is better"
REQUIRED = ("model", "method", "image_id", "score")
#: Columns of protocol settings; tables have one part per value of those that vary.
SETTINGS = ("dataset", "protocol", "grid", "baseline", "steps", "order", "update")


@dataclass(frozen=True)
class ScoreTable:
    """Scores of the same rows (image, seed) under every treatment (model, setting, method).

    Attributes:
        scores: float64 (rows, treatments); NaN where the score is undefined or no record exists.
        present: bool (rows, treatments); True where a record exists.
        image: int (rows,), ascending; which image a row belongs to.
        group: int (rows,), ascending; images that belong together, such as crops of a photo, share one; any other is one of its own.
        seed: int (rows,); which training seed a row belongs to.
        treatments: one row per column of ``scores``: model, the settings that vary, method.
        lower: bool (treatments,); whether a lower score is better.
        ceiling: bool (treatments,); whether a method queries the very deletions that it is scored on. None if the records do not say.
    """

    scores: np.ndarray
    present: np.ndarray
    image: np.ndarray
    group: np.ndarray
    seed: np.ndarray
    treatments: pd.DataFrame
    lower: np.ndarray
    ceiling: np.ndarray | None = None

    @property
    def seeds(self) -> int:
        """Number of training seeds in the rows."""
        return len(np.unique(self.seed))

    @property
    def units(self) -> int:
        """Number of units that a resample draws: groups of images, or images."""
        return len(np.unique(self.group))

    @property
    def unit(self) -> str:
        """Description of a unit: images, or groups of images."""
        return "images" if self.units == len(np.unique(self.image)) else "groups of images"

    def select(self, columns: Sequence[int] | np.ndarray) -> ScoreTable:
        """Return these columns, with the rows in which at least one of them has a record."""
        columns = np.asarray(columns)
        present = self.present[:, columns]
        rows = present.any(1)
        kept = self.treatments.iloc[columns].reset_index(drop=True)
        scores = self.scores[np.ix_(rows, columns)]
        ceiling = None if self.ceiling is None else self.ceiling[columns]
        return ScoreTable(scores, present[rows], self.image[rows], self.group[rows], self.seed[rows], kept, self.lower[columns], ceiling)

    def groups(self, keys: Sequence[str]) -> Iterator[tuple[dict[str, object], ScoreTable]]:
        """Yield one table per combination of the treatment columns ``keys``, with that combination."""
        for values, rows in self.treatments.groupby(list(keys), sort=True, dropna=False).indices.items():
            values = values if isinstance(values, tuple) else (values,)
            yield dict(zip(keys, values, strict=True)), self.select(rows)

    def same_rows(self) -> Iterator[tuple[np.ndarray, ScoreTable]]:
        """Yield indices and tables of columns with records for exactly the same rows, which can share their resamples."""
        alike: dict[bytes, list[int]] = {}
        for column, mask in enumerate(np.packbits(self.present, axis=0).T):
            alike.setdefault(mask.tobytes(), []).append(column)
        for columns in alike.values():
            yield np.array(columns), self.select(columns)


def unit_of(records: pd.DataFrame) -> str:
    """Return the column that a resample draws from: ``group`` if every record has one, else ``image_id``."""
    return "group" if "group" in records.columns and records["group"].notna().all() else "image_id"


def frames(records: Records, *more: str) -> Iterator[pd.DataFrame]:
    """Yield a frame unchanged, or read a run's folder model by model, restricted to the columns that statistics need.

    Args:
        records: a frame, or the folder. Strings from a folder become categorical, so that a record takes some 20 bytes.
        more: names of further columns to read if the run has them.
    """
    if not isinstance(records, (str, os.PathLike)):
        yield records
        return
    from idsds.evaluation.records import Run

    run = Run.open(records)
    for model in run.models:
        content = run.content([model])
        needed = (*REQUIRED, "seed", "group", "direction", "ceiling", "family", *SETTINGS, *more)
        yield content.frame([name for name in dict.fromkeys(needed) if name in content.columns], categorical=True)


@dataclass(frozen=True)
class Scores:
    """Scores of records that need not fit in memory.

    Args:
        names: the models and the methods that have records.
        tables: takes ``"model"`` or ``"method"`` and yields tables that together hold all scores, with those of one model (or method) in
            one table; tables of a folder are read one at a time.
    """

    names: Mapping[str, Collection[object]]
    tables: Callable[[str], Iterator[ScoreTable]]

    def settings(self, by: str) -> Iterator[tuple[dict[str, object], ScoreTable]]:
        """Yield the scores of all methods for each model and setting, or with ``by="model"`` of all models for each method and setting."""
        for table in self.tables("model" if by == "method" else "method"):
            yield from table.groups([name for name in table.treatments.columns if name != by])


def scores_of(records: Records) -> Scores:
    """Return the scores of a frame, or of a run's folder. Raises the errors of :func:`score_table` and :func:`idsds.load_records`."""
    if not isinstance(records, (str, os.PathLike)):
        table = score_table(records)
        return Scores({name: set(table.treatments[name]) for name in ("model", "method")}, lambda _by: iter([table]))
    from idsds.evaluation.records import Run

    content = Run.open(records).content()
    if not content.parts:
        raise ValueError("records hold no rows")
    names = {name: sorted({str(getattr(part, name)) for part in content.parts}) for name in ("model", "method")}

    def tables(by: str) -> Iterator[ScoreTable]:
        one, other = len(names[by]), sum(map(len, names.values())) - len(names[by])
        step = max(1, COLUMNS_AT_ONCE // other)
        for start in range(0, one, step):
            chunk = names[by][start : start + step]
            yield _table_of(content, [part for part in content.parts if getattr(part, by) in chunk])

    return Scores(names, tables)


def _table_of(content: Content, parts: Sequence[Part]) -> ScoreTable:
    """Return the score table of some parts of a run, which are read one after the other."""
    from idsds.evaluation.records import is_ceiling

    ids = np.array(content.image_ids)
    groups = np.array([content.groups[image_id] for image_id in content.image_ids]) if content.groups else ids
    order = np.lexsort((ids, groups))
    of_image = np.empty(len(ids), dtype=np.int64)  # the position of each image among the rows
    of_image[order] = np.arange(len(ids))
    seeds = sorted({part.seed for part in parts})
    several = len({part.grid for part in content.parts}) > 1
    first = {(part.model, part.grid or 0, str(part.method)): part for part in parts}
    columns = {key: number for number, key in enumerate(sorted(first))}
    scores = np.full((len(ids) * len(seeds), len(columns)), np.nan)
    present = np.zeros(scores.shape, dtype=bool)
    for part in parts:
        table = part.load(["score"])
        rows = of_image[table["image"].to_numpy()] * len(seeds) + seeds.index(part.seed)
        column = columns[part.model, part.grid or 0, str(part.method)]
        scores[rows, column], present[rows, column] = table["score"].to_numpy(), True
    scores[~np.isfinite(scores)] = np.nan
    image = np.arange(len(ids)).repeat(len(seeds))
    group = np.unique(groups[order], return_inverse=True)[1].repeat(len(seeds)) if content.groups else image
    of = [first[key] for key in columns]
    treatments = {"model": [part.model for part in of], "grid": [part.grid for part in of], "method": [str(part.method) for part in of]}
    lower = np.full(len(columns), content.facts["direction"] == LOWER)
    ceiling = np.array([is_ceiling(part, content) for part in of], dtype=bool)
    if not several:
        del treatments["grid"]
    seed = np.tile(np.arange(len(seeds)), len(ids))
    table = ScoreTable(scores, present, image, group, seed, pd.DataFrame(treatments), lower, ceiling)
    return table if present.any(1).all() else table.select(np.arange(len(columns)))


def score_table(records: pd.DataFrame) -> ScoreTable:
    """Check ``records`` and arrange them as a matrix; the order of their rows does not matter.

    Args:
        records: a frame with the columns model, method, image_id, score; optionally seed (of the training), group (of
            the image), direction (of the score), and those of :data:`SETTINGS`.

    Raises:
        TypeError: if ``records`` is not a data frame or the scores are not numbers.
        ValueError: if there are no rows, a column or a name is missing, a row occurs twice, scores of one model and setting differ in
            direction, or ``ceiling`` is not true or false.
    """
    if not isinstance(records, pd.DataFrame):
        raise TypeError(f"records must be a pandas DataFrame, not {type(records).__name__}")
    if missing := [name for name in REQUIRED if name not in records.columns]:
        raise ValueError(f"records lack the columns {missing}; they have {list(map(str, records.columns))}")
    if records.empty:
        raise ValueError("records hold no rows")
    try:
        scores = records["score"].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the column 'score' must hold numbers, its dtype is {records['score'].dtype}") from error
    scores = np.where(np.isfinite(scores), scores, np.nan)
    _check_columns(records)
    records = _with_groups(records)

    keys = ["model", *varying_settings(records), "method"]
    treatment, first = _codes(records, keys)
    grouped = ["group"] if unit_of(records) == "group" else []
    seeded = [*grouped, "image_id", *(["seed"] if "seed" in records.columns else [])]
    row, first_of_row = _codes(records, seeded)  # sorted by group, then image, then seed
    cell = row * len(first) + treatment
    if np.bincount(cell).max() > 1:
        twice = records[pd.Series(cell).duplicated().to_numpy()].iloc[0]
        where = ", ".join(f"{name}={twice[name]}" for name in (*keys, *seeded))
        raise ValueError(f"records hold more than one row for {where}; columns that distinguish rows: {', '.join((*SETTINGS, 'seed'))}")

    matrix = np.full((len(first_of_row), len(first)), np.nan)
    present = np.zeros(matrix.shape, dtype=bool)
    matrix[row, treatment], present[row, treatment] = scores, True
    rows = records.iloc[first_of_row]
    image = _codes(rows, [*grouped, "image_id"])[0]
    group = _codes(rows, grouped)[0] if grouped else image
    if grouped and len(np.unique(image)) > rows["image_id"].nunique():
        raise ValueError("an image of the records belongs to several groups (column 'group')")
    seed = _codes(rows, ["seed"])[0] if "seed" in records.columns else np.zeros_like(image)
    treatments = records[keys].iloc[first].reset_index(drop=True)
    plain = {name: dtype.categories.dtype for name, dtype in treatments.dtypes.items() if isinstance(dtype, pd.CategoricalDtype)}
    lower = np.zeros(len(first), dtype=bool)
    if "direction" in records.columns:
        lower = records["direction"].iloc[first].to_numpy(dtype=object) == LOWER
    ceiling = None
    if "ceiling" in records.columns:
        ceiling = np.bincount(treatment, records["ceiling"].eq(True).to_numpy(dtype=bool), len(first)) > 0
    return ScoreTable(matrix, present, image, group, seed, treatments.astype(plain), lower, ceiling)


def _with_groups(records: pd.DataFrame) -> pd.DataFrame:
    """Return records in which an image without a group is a group itself, if others have one."""
    if "group" not in records.columns or records["group"].notna().all() or records["group"].isna().all():
        return records
    alone = "image " + records["image_id"].astype(str)
    return records.assign(group=records["group"].astype(object).where(records["group"].notna(), alone).astype(str))


def _check_columns(records: pd.DataFrame) -> None:
    """Raise ValueError for empty names, a ceiling that is no truth value, and both directions among what would be ranked together."""
    for name in ("model", "method", "image_id"):
        if records[name].isna().any():
            raise ValueError(f"the column {name!r} of the records is empty in {records[name].isna().sum()} of {len(records)} rows")
    if "ceiling" in records.columns and (odd := set(records["ceiling"].dropna().unique()) - {True, False}):
        raise ValueError(f"the column 'ceiling' must hold true or false, not {sorted(map(str, odd))}")
    directions = records["direction"].unique() if "direction" in records.columns else ()
    for direction in directions:
        check_name("direction", direction, (HIGHER, LOWER))
    if len(directions) > 1:
        several = records.groupby(["model", *varying_settings(records)], dropna=False, observed=True)["direction"].nunique()
        if (several > 1).any():
            raise ValueError(f"records of {several.idxmax()!r} mix scores of which higher is better and scores of which lower is")


def varying_settings(records: pd.DataFrame) -> list[str]:
    """Return the setting columns of ``records`` that hold more than one value."""
    return [name for name in SETTINGS if name in records.columns and records[name].nunique(dropna=False) > 1]


def _codes(frame: pd.DataFrame, columns: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return a code per row for the combination of its values in ``columns`` (in sorted order), and the first row of each code."""
    code = frame.groupby(list(columns), dropna=False, observed=True).ngroup().to_numpy()
    return code, np.unique(code, return_index=True)[1]
