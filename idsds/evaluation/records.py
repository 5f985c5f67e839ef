"""Records of a run: reading its folder column by column, and the tidy frame."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from idsds.common import paths
from idsds.common.files import DamagedFileError, reading, sha256_of
from idsds.common.interventions import BLUR_SIGMA, BLUR_TAPS
from idsds.common.registry import check_names
from idsds.evaluation.manifest import MANIFEST, read_manifest

IDENTITY = ("model", "method", "seed", "image_id", "target", "dataset", "protocol", "family", "ceiling", "direction", "score")
#: Columns of a record file that identify a row.
KEYS = ("image", "seed", "grid", "method")


@dataclass(frozen=True)
class Part:
    """The records of one method on one model for one seed and grid; without a method, the method-independent columns.

    Args:
        model, seed, method: what the records are of.
        grid: patches per side; None for protocols without a grid.
        load: reads the named columns, plus ``image``, the position of each row's image, ascending.
        forward, backward, seconds, memory: passes, time, and peak memory in bytes per image of a batch (0 if unknown).
    """

    model: str
    seed: int
    method: str | None
    grid: int | None
    address: str
    rows: int
    columns: tuple[str, ...]
    load: Callable[[Sequence[str]], pa.Table]
    forward: float = 0
    backward: float = 0
    seconds: float = 0
    memory: float = 0

    @property
    def facts(self) -> dict[str, Any]:
        """Return the part's entry in the manifest."""
        plain = {name: getattr(self, name) for name in ("seed", "method", "address", "rows")}
        return {**plain, **{name: round(getattr(self, name), 6) for name in ("forward", "backward", "seconds", "memory")}}


@dataclass(frozen=True)
class Content:
    """All records of a run, in memory or on disk.

    Args:
        parts: the methods' records, in the order of the frame.
        prepared: the method-independent columns.
        image_ids, targets: ids and classes of the images, in their fixed order.
        facts: columns that are equal in every row: ``dataset``, ``protocol`` and the protocol's settings.
        families: the methods' families.
        queried: by model and method, the deletions that it queries itself; with the same settings its score is an upper bound.
        distilled: models that were fine-tuned in-domain without labels.
        groups: the group of each image, by id, such as the photo that it is a crop of; empty if there are none.
        predicted: whether the class explained is the model's prediction, a method-independent column.
    """

    parts: Sequence[Part]
    prepared: Sequence[Part]
    image_ids: Sequence[str]
    targets: np.ndarray
    facts: Mapping[str, Any]
    families: Mapping[str, str]
    predicted: bool
    queried: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    distilled: Collection[str] = ()

    @classmethod
    def of(cls, manifest: Mapping[str, Any], **content: Any) -> Content:
        """Return the content of a run, with the facts of its manifest."""
        return cls(
            facts={**{name: manifest[name] for name in ("dataset", "protocol", "direction")}, **manifest["settings"]},
            families=manifest["families"],
            queried=manifest["queried"],
            predicted=manifest["target"] == "prediction",
            **content,
        )

    @property
    def columns(self) -> list[str]:
        """Return the names of the frame's columns."""
        settings = [name for name in self.facts if name not in IDENTITY]
        own = [name for part in (*self.prepared, *self.parts) for name in part.columns]
        some = {"group": self.groups, "distilled": self.distilled, "explained": self.predicted}
        return list(dict.fromkeys([*IDENTITY, *(name for name, there in some.items() if there), *settings, *own]))

    def frame(self, columns: Sequence[str] | None = None, categorical: bool = False) -> pd.DataFrame:
        """Return one row per record, with all columns or those named. Raises UnknownNameError for an unknown column.

        With ``categorical``, strings become categories of 1 to 4 bytes each.
        """
        check_names("column of the records", columns or (), self.columns)
        names = self.columns if columns is None else list(columns)
        counts = [part.rows for part in self.parts]
        tables = [part.load([name for name in part.columns if name in names]) for part in self.parts]
        places = np.concatenate([as_values(table["image"]) for table in tables]) if tables else np.empty(0, np.int32)
        prepared = {(part.model, part.seed, part.grid): part for part in self.prepared}
        stored = {key: part.load([*names, "target"]) for key, part in prepared.items() if {*names} & {*part.columns}}
        rows = [stored.get((part.model, part.seed, part.grid)) for part in self.parts]

        def picked(values: Sequence[Any], rows: np.ndarray) -> Any:
            plain = pd.Series(values)
            if not categorical or not pd.api.types.is_string_dtype(plain):
                return plain.array.take(rows)
            few = plain.astype("category").cat
            return pd.Categorical.from_codes(few.codes.to_numpy()[rows], few.categories)

        def column(name: str) -> Any:
            if name == "image_id":
                return picked(self.image_ids, places)
            if name == "group":
                return picked([self.groups[image_id] for image_id in self.image_ids], places)
            if name == "target" and not self.predicted:
                return self.targets[places]
            if any(name in part.columns for part in self.parts):
                return _joined([_cells(table, name) for table in tables])
            if any(name in part.columns for part in self.prepared):
                return _joined(_matched(name, rows, tables))
            return picked([_constant(name, part, self) for part in self.parts], np.repeat(np.arange(len(counts), dtype=np.int32), counts))

        return pd.DataFrame({name: column(name) for name in names}, copy=False)


def _constant(name: str, part: Part, content: Content) -> Any:
    """Return the value of a column that does not differ between the images of a part."""
    if name == "family":
        return content.families[part.method or ""]
    if name == "ceiling":
        return is_ceiling(part, content)
    if name == "distilled":
        return part.model in content.distilled
    if name == "explained":
        return "prediction"
    return getattr(part, name) if name in ("model", "method", "seed", "grid") else content.facts[name]


def is_ceiling(part: Part, content: Content) -> bool:
    """Return whether a method queries the same deletions by which it is scored: the grid, its offset and the baseline."""
    queried = content.queried.get(part.model, content.queried).get(part.method or "")  # older folders: not by model
    own, settings = {"offsets": [0], **(queried or {})}, {**content.facts, "grid": part.grid}
    same = (settings.get("offset") or 0) in own.pop("offsets") and all(_spelt(settings.get(name)) == _spelt(own[name]) for name in own)
    return queried is not None and same


def _spelt(value: Any) -> Any:
    """Return what is the same however a blur is spelt: ``blur`` is ``blur 51 41`` and ``blur 51 41.0``; other values unchanged."""
    if not isinstance(value, str) or value.split()[:1] != ["blur"]:
        return value
    return "blur", *(map(float, value.split()[1:]) if value != "blur" else (BLUR_TAPS, BLUR_SIGMA))


def as_values(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column as (N,), or (N, n) for fixed-size lists."""
    if pa.types.is_fixed_size_list(column.type):
        parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
        flat = np.concatenate(parts) if parts else np.empty(0, np.float32)
        return flat.reshape(-1, column.type.list_size)
    return column.to_numpy()


def _cells(table: pa.Table, name: str) -> np.ndarray:
    """Return a column with one object per row; NaN for a method without that column."""
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    values = as_values(table[name])
    if values.ndim == 1:
        return values
    cells = np.empty(len(values), dtype=object)
    cells[:] = list(values)
    return cells


def _matched(name: str, stored: Sequence[pa.Table | None], tables: Sequence[pa.Table]) -> Iterator[np.ndarray]:
    """Return a method-independent column for each table's images; records of one image share the object in a cell."""
    known: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for table, part in zip(stored, tables, strict=True):
        if table is None:
            yield np.full(len(part), np.nan)
            continue
        if id(table) not in known:
            known[id(table)] = as_values(table["image"]), _cells(table, name)
        places, cells = known[id(table)]
        yield cells[np.searchsorted(places, as_values(part["image"]))]


def _joined(values: Any) -> np.ndarray:
    values = list(values)
    return np.concatenate(values) if values else np.empty(0)


def load_records(
    output: str | Path,
    columns: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return the records of a run, as returned by :func:`idsds.evaluate`.

    Args:
        columns: columns to read; None for all. Drops and patch sums take most of the memory, about 1 kB per record.
        models, methods: models and methods to read; None for all of the last call with this folder. Records of other calls stay in the
            folder and are reused when requested again.

    Returns:
        One row per record, by model, seed, method and grid.

    Raises:
        FileNotFoundError: if there is no complete run.
        OldRecordsError: if the records have another format.
        UnknownNameError: for a column, model or method that the run does not hold.
        DamagedFileError: if a file cannot be read or was changed; the message names it. Starting the same run again repairs it.
    """
    return Run.open(output).content(models, methods).frame(columns)


class Run:
    """A complete folder of records. Each file's content is verified before it is read."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self._open: dict[str, pq.ParquetFile] = {}

    @classmethod
    def open(cls, output: str | Path) -> Run:
        """Open the run in a folder. Raises the same errors as :func:`load_records`."""
        folder = paths.resolve(output)
        if not (folder / MANIFEST).is_file():
            raise FileNotFoundError(f"no records in {str(folder)!r}: there is no {MANIFEST}")
        manifest = read_manifest(folder)
        if manifest["status"] != "complete":
            raise FileNotFoundError(f"the run in {str(folder)!r} is not complete; start it again, it continues where it was")
        return cls(folder, manifest)

    @cached_property
    def models(self) -> list[str]:
        """Names of the models."""
        return list(dict.fromkeys(entry["model"] for entry in self.manifest["models"]))

    def files(self, kind: str) -> list[dict[str, Any]]:
        """Return the entries of files of a kind: ``images``, ``deletions`` (method-independent columns), ``scores`` or ``undefined``."""
        return [entry for entry in self.manifest["files"] if entry["kind"] == kind]

    def content(self, models: Sequence[str] | None = None, methods: Sequence[str] | None = None) -> Content:
        """Return the records of some models and methods; None for all. Raises UnknownNameError."""
        for what, names, known in (("model", models, self.models), ("method", methods, self.manifest["methods"])):
            check_names(f"{what} of the run in {str(self.folder)!r}", names or (), known)
        images, manifest = self.images(), self.manifest
        groups = images["group"].to_pylist() if "group" in images.column_names else []
        places = {(entry["model"], entry["seed"]): place for place, entry in enumerate(manifest["models"])}
        parts = [part for part in self.parts("scores", models) if methods is None or part.method in methods]
        return Content.of(
            manifest,
            parts=ordered(parts, places, manifest["methods"]),
            prepared=self.parts("deletions", models),
            image_ids=images["image_id"].to_pylist(),
            targets=images["target"].to_numpy(),
            groups=dict(zip(images["image_id"].to_pylist(), groups, strict=False)),
            distilled=sorted({entry["model"] for entry in manifest["models"] if entry.get("distilled")}),
        )

    def images(self) -> pa.Table:
        """Return ``image_id``, ``target``, ``key`` (its address) and, if any, ``group`` of every image, in the fixed order."""
        return self._read(self.files("images")[0], 0, None)

    def parts(self, kind: str, models: Sequence[str] | None = None) -> list[Part]:
        """Return the parts in the files of a kind; nothing is read before a part is loaded."""
        found = []
        for entry in self.files(kind):
            columns = tuple(name for name in entry["columns"] if name not in KEYS)
            for number, facts in enumerate(entry["parts"] if models is None or entry["model"] in models else ()):
                load = partial(self.part, entry, number)
                facts = {name: value for name, value in facts.items() if name not in ("end", "sha256")}
                found.append(Part(entry["model"], **facts, grid=entry["grid"], columns=columns, load=load))
        return found

    def part(self, entry: Mapping[str, Any], number: int, columns: Collection[str]) -> pa.Table:
        """Return some columns of a part of a file, with the positions of its images. Raises DamagedFileError."""
        rows = entry["parts"][number]["rows"]
        table = self._read(entry, number, ["image", *(name for name in entry["columns"] if name in columns and name not in KEYS)])
        places = table["image"].to_numpy()
        if len(table) != rows or (np.diff(places) <= 0).any() or (rows and not 0 <= places[0] <= places[-1] < self.manifest["images"]):
            raise DamagedFileError(f"{str(self.folder / entry['path'])!r} does not hold each image once")
        return table

    def _read(self, entry: Mapping[str, Any], group: int, columns: Sequence[str] | None) -> pa.Table:
        path = self.path(entry)
        with reading(path):
            if entry["path"] not in self._open:
                self._open[entry["path"]] = _checked(path, entry)
            return self._open[entry["path"]].read_row_group(group, columns=None if columns is None else list(columns))

    def rescue(self, entry: Mapping[str, Any]) -> list[int]:
        """Return the intact parts of a damaged file, and read only them from now on; empty if there are none."""
        ends, hashes = [0, *(part.get("end", -1) for part in entry["parts"])], [part.get("sha256") for part in entry["parts"]]
        try:
            content = self.path(entry).read_bytes()
            if hashlib.sha256(content[ends[-1] :]).hexdigest() != entry.get("footer") or min(ends) < 0:
                return []
            self._open[entry["path"]] = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        except (pa.ArrowException, OSError):
            return []
        pieces = [hashlib.sha256(content[start:end]).hexdigest() for start, end in pairwise(ends)]
        return [number for number, (piece, written) in enumerate(zip(pieces, hashes, strict=True)) if piece == written]

    def path(self, entry: Mapping[str, Any]) -> Path:
        """Return the path of a file in the manifest. Raises DamagedFileError for a path outside the folder."""
        path = PurePosixPath(entry["path"])
        if path.is_absolute() or ".." in path.parts or "\\" in entry["path"] or ":" in entry["path"]:
            raise DamagedFileError(f"{str(self.folder / MANIFEST)!r} names a file outside its folder: {entry['path']!r}")
        return self.folder / path

    def check(self, entry: Mapping[str, Any]) -> None:
        """Raise DamagedFileError, which names the file, if it is missing or was changed."""
        self._read(entry, 0, [])


def ordered(parts: Sequence[Part], models: Mapping[tuple[str, int], int], methods: Sequence[str]) -> list[Part]:
    """Return the parts in the order of a frame: by model and seed, method, and grid."""
    place = {method: number for number, method in enumerate(methods)}
    return sorted(parts, key=lambda part: (models[part.model, part.seed], place[part.method or methods[0]], part.grid or 0))


#: Files verified against their hash in this process, by their file system metadata.
_known: set[tuple[Any, ...]] = set()


def _checked(path: Path, entry: Mapping[str, Any]) -> pq.ParquetFile:
    """Open a file after checking that it matches the manifest. Raises DamagedFileError."""
    state = os.stat(path)
    stamp = (str(path), state.st_ino, state.st_mtime_ns, state.st_size, entry["sha256"])
    if stamp not in _known and sha256_of(path) != entry["sha256"]:
        raise DamagedFileError(f"cannot read the records in {str(path)!r}: its content is not what was written")
    _known.add(stamp)
    file = pq.ParquetFile(path, page_checksum_verification=True)
    columns = {field.name: str(field.type) for field in file.schema_arrow}
    rows = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    if columns != entry["columns"] or rows != [part["rows"] for part in entry["parts"]] or sum(rows) != entry["rows"]:
        raise DamagedFileError(f"cannot read the records in {str(path)!r}: its columns or rows are not those that the manifest names")
    return file


def undefined_scores(records: pd.DataFrame) -> pd.DataFrame:
    """Return the table of undefined scores: image, model, method, seed, grid, and the reason."""
    rows = records[records["score"].isna()]
    keys = [name for name in ("model", "method", "seed", "grid", "image_id") if name in rows]
    return rows[keys].assign(why=[_why(row) for row in rows.itertuples()]).reset_index(drop=True)


def _why(row: Any) -> str:
    if getattr(row, "counted", None) == 0:
        return "every augmentation moves the target's probability by the threshold or more, or leaves the image as it is"
    for what, name in (("attributions", "patch_sums"), ("drops", "drops")):
        values = getattr(row, name, None)
        if values is None:
            continue
        if not np.isfinite(values).all():
            return f"{what} that are not finite"
        if np.ptp(values) == 0:
            return f"{what} that are equal for all patches"
    return "undefined"


def collected(names: Collection[str]) -> str:
    """Return up to eight names, for a message."""
    return ", ".join([*list(names)[:8], *(["..."] if len(names) > 8 else [])])
