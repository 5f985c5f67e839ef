"""The folder of a run, from the side of the one who writes: what is there already, and how a run becomes complete.

A run is complete when its manifest is in place, and that happens last: every file that it names is there, hashed, and holds what was asked.
Until then the folder is what it was before. Files are named by a hash of what they hold, so that a reader of the old manifest keeps the old
files, and a run that changes nothing writes nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from idsds.common.files import PARQUET, DamagedFileError, atomic, remove_abandoned
from idsds.common.hashing import digest, versions
from idsds.evaluation.cache import Block, Cover, Store, cover, gathered, linked
from idsds.evaluation.plan import Job, Plan, Unit
from idsds.evaluation.records import (
    FORMAT,
    KEYS,
    Content,
    OldRecordsError,
    Part,
    Run,
    ordered,
    undefined_scores,
    write_manifest,
)
from idsds.evaluation.right import images_right
from idsds.evaluation.run import wanted_images

#: What each job's units are, and the blocks that there are of each.
There = list[dict[Unit, list[Block]]]


def opened(folder: Path) -> Run | None:
    """The complete run in a folder, if there is one. Raises OldRecordsError; a damaged manifest is named, and made again."""
    try:
        return Run.open(folder)
    except FileNotFoundError:
        return None
    except OldRecordsError:
        raise
    except DamagedFileError as error:
        warnings.warn(f"{error}; what it said of the records is found out again", stacklevel=3)
        return None


class Folder:
    """The folder of a run that is being written.

    Args:
        path: of the folder.
        cache: the blocks of all runs; None to share nothing.
    """

    def __init__(self, path: Path, cache: Store | None) -> None:
        self.path, self.cache = path, cache
        self.blocks, self.kept = Store(path / "blocks"), Store(path / "kept")
        self.run = opened(path)
        self.committed = {} if self.run is None else committed_blocks(self.run)

    def find(self, plan: Plan) -> There:
        """What there is of a plan: in the folder, and in the cache where the folder lacks something."""
        return [
            {unit: self._blocks(unit, images) for unit in plan.units(job, True)}
            for job, images in ((job, wanted_images(job, True)) for job in plan.jobs)
        ]

    def _blocks(self, unit: Unit, images: Mapping[str, str]) -> list[Block]:
        own = [*self.committed.get(unit.address, []), *self.blocks.find(unit.address), *self.kept.find(unit.address)]
        if self.cache is not None and cover(own, unit.methods, images)[1]:
            own += self.cache.find(unit.address)
        return own

    def begin(self, plan: Plan, there: There) -> There:
        """Prepare the folder for a run: bring over the blocks of the cache that it will use, and leave there what it lacks.

        What is complete stays so until there is a new manifest. Raises OSError, naming the file.
        """
        remove_abandoned(self.path, older_than=0)
        if self.run is None:
            write_manifest(self.path, {"status": "running", **described(plan)})
        return [
            {unit: self._taken(unit, blocks, wanted_images(job, True)) for unit, blocks in of_job.items()}
            for job, of_job in zip(plan.jobs, there, strict=True)
        ]

    def _taken(self, unit: Unit, blocks: list[Block], images: Mapping[str, str]) -> list[Block]:
        if self.cache is None:
            return blocks
        if blocks and not (self.cache.folder / unit.address).is_dir():
            for block in blocks:
                share_again(block, self.cache)
        used = {block.where for picks in cover(blocks, unit.methods, images)[0].values() for block, _ in picks}
        own = str(self.path)
        return [
            linked(self.blocks, block) if block.where in used and not block.where.startswith(own + os.sep) else block
            for block in blocks
            if block.where in used or block.where.startswith(own + os.sep)
        ]

    def from_cache(self, there: There) -> int:
        """How many of the blocks are those of other runs."""
        own = str(self.path) + os.sep
        return len({block.where for of_job in there for blocks in of_job.values() for block in blocks if not block.where.startswith(own)})


def committed_blocks(run: Run) -> dict[str, list[Block]]:
    """The records of a complete run as blocks, by address. A file that is damaged is named, and what was in it left out."""
    found: dict[str, list[Block]] = {}
    try:
        table = run.images()
    except DamagedFileError as error:
        warnings.warn(f"{error}; the records are computed again", stacklevel=4)
        return found
    keys = dict(zip(table["image_id"].to_pylist(), table["key"].to_pylist(), strict=True))
    ids = list(keys)
    for kind in ("deletions", "scores"):
        for entry in run.files(kind):
            try:
                run.check(entry)
                for number, facts in enumerate(entry["parts"]):
                    images = keys
                    if facts["rows"] < len(keys):
                        images = {ids[place]: keys[ids[place]] for place in run.places(entry, number)}
                    methods = () if facts["method"] is None else (facts["method"],)
                    taken = {name: facts.get(name, 0) for name in ("forward", "backward", "seconds", "memory")}
                    load = partial(_columns_of, str(run.folder), entry["path"], number)
                    block = Block(facts["address"], images, methods, load, **taken, where=str(run.folder / entry["path"]))
                    found.setdefault(block.address, []).append(block)
            except DamagedFileError as error:
                warnings.warn(f"{error}; what was in it is computed again", stacklevel=4)
    return found


def _columns_of(folder: str, path: str, number: int) -> pa.Table:
    """The columns of a part of a run, as those of a block."""
    run = Run.open(folder)
    entry = next(entry for entry in run.manifest["files"] if entry["path"] == path)
    return run.part(entry, number, entry["columns"]).drop_columns("image")


def share_again(block: Block, cache: Store) -> None:
    """Leave what the folder has in a cache that has nothing of it. A cache that cannot be written stops nothing."""
    with suppress(OSError):
        cache.write(block)


@dataclass(frozen=True)
class Result:
    """What a run came to: for every job and unit the blocks to take each image from, and what could not be read.

    Args:
        plan: what was asked for.
        covers: for each job, by unit.
        images: by id, the address of each image that has records, in the fixed order.
        targets: by id, the label of each.
        skipped: ids of the images that the data set could not read.
    """

    plan: Plan
    covers: Sequence[Mapping[Unit, Cover]]
    images: Mapping[str, str]
    targets: Mapping[str, int]
    skipped: Sequence[str]

    @cached_property
    def place(self) -> dict[str, int]:
        """The place of each image."""
        return {image_id: number for number, image_id in enumerate(self.images)}

    @property
    def members(self) -> Iterator[tuple[Job, Unit, Cover]]:
        """Every unit of every job."""
        for job, units in zip(self.plan.jobs, self.covers, strict=True):
            for unit, found in units.items():
                yield job, unit, found

    def assembled(self, job: Job, unit: Unit, found: Cover) -> Iterator[Part]:
        """The parts of a unit, each with all its rows in memory; what the unit took stands with the first of them.

        Raises:
            DamagedFileError: naming the file of a block that is not what it was.
        """
        grid = self.plan.grids[unit.grid].get("grid")
        loaded: dict[int, pa.Table] = {}

        def once(block: Block) -> pa.Table:
            if id(block) not in loaded:
                loaded[id(block)] = block.load()
            return loaded[id(block)]

        took = {"forward": 0.0, "backward": 0.0, "seconds": 0.0, "memory": 0.0}
        for block, image_ids in next(iter(found.values()), []):
            for name in ("forward", "backward", "seconds"):
                took[name] += getattr(block, name) * len(image_ids) / len(block.images)
            took["memory"] = max(took["memory"], block.memory)
        for method, picks in found.items():
            if picks:
                table = gathered([(replace(block, load=partial(once, block)), image_ids) for block, image_ids in picks], method, self.place)
                names = tuple(name for name in table.column_names if name not in KEYS)
                yield Part(job.model, job.seed, method, grid, unit.address, len(table), names, partial(_selected, table), **took)
                took = dict.fromkeys(took, 0.0)

    def content(self) -> Content:
        """All records, in memory."""
        plan, parts = self.plan, [part for member in self.members for part in self.assembled(*member)]
        models = {(job.model, job.seed): number for number, job in enumerate(plan.jobs)}
        return Content(
            parts=ordered([part for part in parts if part.method is not None], models, plan.methods),
            prepared=[part for part in parts if part.method is None],
            image_ids=list(self.images),
            targets=np.array(list(self.targets.values()), dtype=np.int64),
            facts={"dataset": plan.dataset, "protocol": plan.protocol.name, "direction": plan.protocol.direction, **plain_settings(plan)},
            families={name: family for job in plan.jobs for name, family in job.families.items()},
            queried={name: queried for job in plan.jobs for name, queried in job.queried.items()},
            groups=plan.groups,
            predicted=plan.target == "prediction",
        )


def _selected(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    return table.select(["image", *(name for name in table.column_names if name in columns and name not in KEYS)])


def plain_settings(plan: Plan) -> dict[str, Any]:
    """The settings that are stored; what is a tensor is part of the address alone."""
    quantity = {} if plan.quantity is None else {"quantity": str(plan.quantity)}
    return {name: _in_a_cell(value) for name, value in plan.settings.items() if not isinstance(value, Tensor)} | quantity


def _in_a_cell(setting: Any) -> Any:
    """A setting as one value of a column: a mapping or a sequence (but several grids) as JSON."""
    return json.dumps(setting) if isinstance(setting, (Mapping, list)) else setting


def described(plan: Plan) -> dict[str, Any]:
    """What the manifest says of a plan."""
    return {
        "protocol": plan.protocol.name,
        "direction": plan.protocol.direction,
        "target": plan.target,
        "settings": plain_settings(plan),
        "dataset": plan.dataset,
        "seeds": sorted({job.seed for job in plan.jobs}),
        "methods": plan.methods,
        "families": {name: family for job in plan.jobs for name, family in job.families.items()},
        "queried": {name: queried for job in plan.jobs for name, queried in job.queried.items()},
        "left_out": [{"model": job.model, "method": name, "why": why} for job in plan.jobs for name, why in job.excluded.items()],
        "device": plan.device,
        "precision": plan.precision,
        "channels_last": plan.channels_last,
        "compiled": plan.compiled,
        "versions": versions(),
    }


def commit(folder: Folder, result: Result, began: Callable[[], float]) -> Run:
    """Make a run complete: write its files, then its manifest, then remove what no manifest names.

    Args:
        folder: whose lock is held.
        result: what the records are taken from.
        began: gives the seconds since the call began.

    Raises:
        DamagedFileError, OSError: naming the file; the folder is then as complete as it was before.
    """
    plan = result.plan
    table = {"image_id": list(result.images), "target": list(result.targets.values()), "key": list(result.images.values())}
    if plan.groups:
        table["group"] = [plan.groups[image_id] for image_id in result.images]
    writer = _Writer(folder, digest([FORMAT, table, plain_settings(plan)]))
    entries = writer.table("images", pa.table(table))
    files: dict[tuple, list[tuple[Job, Unit, Cover]]] = {}
    for job, unit, found in result.members:
        seed = job.seed if unit.group is None else None  # the seeds of a model are in one file of scores, in one each of columns
        files.setdefault((unit.group is not None, job.model, unit.grid, seed), []).append((job, unit, found))
    for members in files.values():
        entries += writer.members(result, members)
    manifest = {
        "status": "complete",
        **described(plan),
        "images": len(result.images),
        "models": [{"model": job.model, "seed": job.seed, "weights": job.model_key} for job in plan.jobs],
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
    """Writes the files of a run, but for those that are there.

    Args:
        folder: of the run.
        images: a hash of the images and settings of the run.
    """

    def __init__(self, folder: Folder, images: str) -> None:
        self.folder, self.images = folder, images
        self.there: dict[str, list[dict[str, Any]]] = {}
        for entry in folder.run.manifest["files"] if folder.run is not None else ():
            try:
                folder.run.check(entry)  # type: ignore[union-attr]
                self.there.setdefault(entry["holds"], []).append(entry)
            except DamagedFileError:
                pass  # it has been named, and is written again

    def table(self, kind: str, table: pa.Table) -> list[dict[str, Any]]:
        """A file that holds one table."""
        holds = digest([kind, self.images, table.to_pylist() if kind == "undefined" else None])
        if holds in self.there:
            return self.there[holds]
        with _File(self.folder.path, f"{kind}-{holds[:10]}.parquet", table.schema) as file:
            file.write(table, {"rows": table.num_rows})
        return [{**file.facts, "kind": kind, "holds": holds, "model": None, "grid": None}]

    def members(self, result: Result, members: Sequence[tuple[Job, Unit, Cover]]) -> list[dict[str, Any]]:
        """The files that hold some units of one model: one, or one for each set of columns where methods have different ones."""
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
        slug = re.sub(r"[^\w+-]+", "_", job.model)[:60]  # what the user calls a net may be no name of a file
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
    """The columns of a part with those that say what each row is."""
    table = part.load(part.columns)
    if part.method is None:
        return table
    keys = {"image": table["image"], "seed": pa.array(np.full(part.rows, part.seed))}
    if part.grid is not None:
        keys["grid"] = pa.array(np.full(part.rows, part.grid, dtype=np.int32))
    keys["method"] = pa.DictionaryArray.from_arrays(pa.array(np.zeros(part.rows, dtype=np.int32)), pa.array([part.method]))
    return pa.table({**keys, **{name: table[name] for name in part.columns}})


class _File(ExitStack):
    """A parquet file that is written part by part, each a row group, and hashed meanwhile."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        super().__init__()
        self.folder, self.name, self.schema = folder, name, schema
        self.parts: list[dict[str, Any]] = []
        self.hash = hashlib.sha256()

    def __enter__(self) -> _File:
        super().__enter__()
        partial_path = self.enter_context(atomic(self.folder / self.name))
        self.writer = self.enter_context(pq.ParquetWriter(self.enter_context(_Hashed(partial_path, self.hash)), self.schema, **PARQUET))
        return self

    def write(self, table: pa.Table, facts: dict[str, Any]) -> None:
        """Add a part."""
        self.writer.write_table(table, row_group_size=max(1, table.num_rows))
        self.parts.append(facts)

    @property
    def facts(self) -> dict[str, Any]:
        """As it stands in the manifest, once the file is closed."""
        columns = {field.name: str(field.type) for field in self.schema}
        rows = sum(part["rows"] for part in self.parts)
        return {"path": self.name, "sha256": self.hash.hexdigest(), "rows": rows, "columns": columns, "parts": self.parts}


class _Hashed(io.FileIO):
    """A file whose bytes are hashed as they are written."""

    def __init__(self, path: Path, found: Any) -> None:
        super().__init__(path, "wb")
        self.found = found

    def write(self, content: Any) -> int:
        """Write all of it."""
        left = memoryview(content).cast("B")
        self.found.update(left)
        size = len(left)
        while len(left):
            left = left[super().write(left) :]
        return size


def _ledger(run: Run) -> pa.Table:
    """Which scores are undefined, and why."""
    content, found = run.content(), []
    for part in content.parts:
        if "score" in part.columns and np.isnan(part.load(["score"])["score"].to_numpy()).any():
            found.append(undefined_scores(replace(content, parts=[part]).frame()))
    empty = undefined_scores(pd.DataFrame({name: [] for name in ("model", "method", "seed", "image_id", "score")}))
    return pa.Table.from_pandas(pd.concat(found, ignore_index=True) if found else empty, preserve_index=False).replace_schema_metadata(None)


def _keep(folder: Folder, result: Result) -> None:
    """What the folder holds of other calls, and this one has not asked for, goes to ``kept``."""
    asked: dict[tuple[str, str | None], set[str]] = {}
    for _, unit, found in result.members:
        for method, picks in found.items():
            asked.setdefault((unit.address, method), set()).update(image_id for _, image_ids in picks for image_id in image_ids)
    for address, blocks in folder.committed.items():
        for block in blocks:
            there = asked.get((address, block.methods[0] if block.methods else None), set())
            if rest := [image_id for image_id, key in block.images.items() if image_id not in there or result.images.get(image_id) != key]:
                folder.kept.write(block.only(rest))
    used = {block.where for _, _, found in result.members for picks in found.values() for block, _ in picks}
    for path in folder.blocks.folder.glob("*/*.parquet"):
        if str(path) not in used:
            folder.kept.add(path, path.parent.name)


def _tidy(folder: Folder, named: set[str]) -> None:
    """Remove the files that the manifest does not name, but for what is kept."""
    folder.blocks.remove()
    for kind in ("scores", "deletions"):
        for path in (folder.path / kind).glob("*.parquet"):
            if f"{kind}/{path.name}" not in named:
                path.unlink(missing_ok=True)
    for path in (*folder.path.glob("images-*.parquet"), *folder.path.glob("undefined-*.parquet")):
        if path.name not in named:
            path.unlink(missing_ok=True)
