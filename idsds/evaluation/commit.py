"""Complete a run: write its files, then its manifest.

A run is complete once its manifest is written, which happens last: by then every file that it names exists and is hashed. Until then the
folder is unchanged for readers. Files are named by a hash of their content, so that a reader of the old manifest keeps the old files, and a
run that changes nothing writes nothing.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from idsds.common.files import PARQUET, DamagedFileError, atomic
from idsds.common.hashing import digest
from idsds.evaluation.cache import Cover
from idsds.evaluation.folder import Folder
from idsds.evaluation.job import Job
from idsds.evaluation.manifest import FORMAT, write_manifest
from idsds.evaluation.plan import Unit
from idsds.evaluation.records import Part, Run, undefined_scores
from idsds.evaluation.result import Result, described, plain_settings
from idsds.evaluation.right import images_right
from idsds.training.checkpoints import Stage


def commit(folder: Folder, result: Result, began: Callable[[], float]) -> Run:
    """Complete a run: write its files, then its manifest, then remove the files that the manifest does not name.

    Args:
        folder: the run's folder; the caller holds its lock.
        result: where each record is stored.
        began: returns the seconds since the call began.

    Raises:
        DamagedFileError, OSError: naming the file; the folder then still has its previous content.
    """
    plan = result.plan
    table = {"image_id": list(result.images), "target": list(result.targets.values()), "key": list(result.images.values())}
    if plan.groups:
        table["group"] = [plan.groups[image_id] for image_id in result.images]
    writer = _Writer(folder, digest([FORMAT, table, plain_settings(plan)]))
    entries = writer.table("images", pa.table(table))
    files: dict[tuple, list[tuple[Job, Unit, Cover]]] = {}
    for job, unit, found in result.members:
        seed = job.seed if unit.group is None else None  # scores of all seeds share a file; columns have a file per seed
        files.setdefault((unit.group is not None, job.model, unit.grid, seed), []).append((job, unit, found))
    for members in files.values():
        entries += writer.members(result, members)
    manifest = {
        "status": "complete",
        **described(plan),
        "images": len(result.images),
        "models": [{"model": job.model, "seed": job.seed, "weights": job.model_key, "distilled": job.distilled} for job in plan.jobs],
        "checkpoints": {**folder.checkpoints, **{job.source.key: job.weights for job in plan.jobs if isinstance(job.source, Stage)}},
        "skipped": list(result.skipped),
        "files": entries,
    }
    ledger = _ledger(Run(folder.path, manifest))
    entries += writer.table("undefined", ledger)
    facts = [part for entry in entries for part in entry["parts"]]
    counted = {name: round(sum(part.get(name, 0) for part in facts)) for name in ("forward", "backward")}
    manifest |= {
        "right": images_right(Run(folder.path, manifest), ledger),
        "records": sum(entry["rows"] for entry in entries if entry["kind"] == "scores"),
        "undefined": ledger.num_rows,
        "passes": {"announced": plan.announced._asdict(), "counted": counted},
        "seconds": {"passes": round(sum(part.get("seconds", 0) for part in facts), 3), "this_call": round(began(), 3)},
    }
    _keep(folder, result)
    write_manifest(folder.path, manifest)
    _tidy(folder, {entry["path"] for entry in entries})
    return Run.open(folder.path)


class _Writer:
    """Writes the files of a run that do not exist yet.

    Args:
        images: a hash of the images and settings of the run.
    """

    def __init__(self, folder: Folder, images: str) -> None:
        self.folder, self.images = folder, images
        self.there: dict[str, list[dict[str, Any]]] = {}
        for entry in folder.run.manifest["files"] if folder.run is not None else ():
            with suppress(DamagedFileError):  # a warning was given when the folder was opened; the file is written again
                folder.run.check(entry)  # type: ignore[union-attr]
                self.there.setdefault(entry["holds"], []).append(entry)

    def table(self, kind: str, table: pa.Table) -> list[dict[str, Any]]:
        """Write a table to a file of its own, and return its entry in the manifest."""
        holds = digest([kind, self.images, table.to_pylist() if kind == "undefined" else None])
        if holds in self.there:
            return self.there[holds]
        with _File(self.folder.path, f"{kind}-{holds[:10]}.parquet", table.schema) as file:
            file.write(table, {"rows": table.num_rows})
        return [{**file.facts, "kind": kind, "holds": holds, "model": None, "grid": None}]

    def members(self, result: Result, members: Sequence[tuple[Job, Unit, Cover]]) -> list[dict[str, Any]]:
        """Write some units of one model, and return their entries: a file for each set of columns, since methods may differ in theirs."""
        (job, unit, _), everything = members[0], len(result.images)
        kind, grid = "deletions" if unit.group is None else "scores", result.plan.grids[unit.grid].get("grid")
        chosen = [
            [job.seed, unit.address, method, "all" if sum(map(len, ids)) == everything else ids]
            for job, unit, found in members
            for method, ids in ((method, [image_ids for _, image_ids in picks]) for method, picks in found.items())
        ]
        holds = digest([kind, job.model, grid, self.images, chosen])
        if holds in self.there:
            return self.there[holds]
        slug = re.sub(r"[^\w+-]+", "_", job.model)[:60]  # the name of a user's net may not be a valid file name
        files: dict[pa.Schema, _File] = {}
        with ExitStack() as stack:
            for member in members:
                for part in result.assembled(*member):
                    table = _with_keys(part)
                    if table.schema not in files:
                        name = f"{kind}/{slug}-{holds[:10]}{f'-{len(files)}' if files else ''}.parquet"
                        files[table.schema] = stack.enter_context(_File(self.folder.path, name, table.schema))
                    files[table.schema].write(table, part.facts)
        return [{**file.facts, "kind": kind, "holds": holds, "model": job.model, "grid": grid} for file in files.values()]


def _with_keys(part: Part) -> pa.Table:
    """Return the columns of a part, preceded by the keys of each row."""
    table = part.load(part.columns)
    if part.method is None:
        return table
    keys = {"image": table["image"], "seed": pa.array(np.full(part.rows, part.seed))}
    if part.grid is not None:
        keys["grid"] = pa.array(np.full(part.rows, part.grid, dtype=np.int32))
    keys["method"] = pa.DictionaryArray.from_arrays(pa.array(np.zeros(part.rows, dtype=np.int32)), pa.array([part.method]))
    return pa.table({**keys, **{name: table[name] for name in part.columns}})


class _File(ExitStack):
    """A parquet file that is written part by part, one row group each, and hashed on the way."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        super().__init__()
        self.folder, self.name, self.schema = folder, name, schema
        self.parts: list[dict[str, Any]] = []

    def __enter__(self) -> _File:
        super().__enter__()
        partial_path = self.enter_context(atomic(self.folder / self.name))
        self.file = self.enter_context(_Hashed(partial_path))
        self.writer = self.enter_context(pq.ParquetWriter(self.file, self.schema, **PARQUET))
        return self

    def write(self, table: pa.Table, facts: dict[str, Any]) -> None:
        self.writer.write_table(table, row_group_size=max(1, table.num_rows))
        self.parts.append({**facts, **self.file.take()})

    @property
    def facts(self) -> dict[str, Any]:
        """The file's entry in the manifest, available once the file is closed."""
        columns = {field.name: str(field.type) for field in self.schema}
        rows = sum(part["rows"] for part in self.parts)
        footer = self.file.take()["sha256"]
        hashes = {"sha256": self.file.hash.hexdigest(), "footer": footer}
        return {"path": self.name, **hashes, "rows": rows, "columns": columns, "parts": self.parts}


class _Hashed(io.FileIO):
    """A file whose bytes are hashed as they are written: all of them, and piece by piece."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "wb")
        self.hash, self.piece, self.size = hashlib.sha256(), hashlib.sha256(), 0

    def take(self) -> dict[str, Any]:
        """Return where the bytes since the last call end, and their hash."""
        facts = {"end": self.size, "sha256": self.piece.hexdigest()}
        self.piece = hashlib.sha256()
        return facts

    def write(self, content: Any) -> int:
        left = memoryview(content).cast("B")
        self.hash.update(left)
        self.piece.update(left)
        size = len(left)
        self.size += size
        while len(left):
            left = left[super().write(left) :]
        return size


def _ledger(run: Run) -> pa.Table:
    """Return a table of the undefined scores, with the reasons."""
    content, tables = run.content(), []
    for part in content.parts:
        if "score" in part.columns and np.isnan(part.load(["score"])["score"].to_numpy()).any():
            tables.append(undefined_scores(replace(content, parts=[part]).frame()))
    empty = undefined_scores(pd.DataFrame({name: [] for name in ("model", "method", "seed", "image_id", "score")}))
    frame = pd.concat(tables, ignore_index=True) if tables else empty
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)


def _keep(folder: Folder, result: Result) -> None:
    """Move records of earlier calls that this call did not request to ``kept``."""
    requested: dict[tuple[str, str | None], set[str]] = {}
    for _, unit, found in result.members:
        for method, picks in found.items():
            requested.setdefault((unit.address, method), set()).update(image_id for _, image_ids in picks for image_id in image_ids)
    for address, blocks in folder.committed.items():
        for block in blocks:
            there = requested.get((address, block.methods[0] if block.methods else None), set())
            if rest := [image_id for image_id, key in block.images.items() if image_id not in there or result.images.get(image_id) != key]:
                folder.kept.write(block.only(rest))
    used = {block.where for _, _, found in result.members for picks in found.values() for block, _ in picks}
    for path in folder.blocks.folder.glob("*/*.parquet"):
        if str(path) not in used:
            folder.kept.add(path, path.parent.name)


def _tidy(folder: Folder, named: set[str]) -> None:
    """Remove the files that the manifest does not name, except those in ``kept``."""
    folder.blocks.remove()
    for pattern in ("scores/*.parquet", "deletions/*.parquet", "images-*.parquet", "undefined-*.parquet"):
        for path in folder.path.glob(pattern):
            if path.relative_to(folder.path).as_posix() not in named:
                path.unlink(missing_ok=True)
