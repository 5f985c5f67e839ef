"""The folder of a run while it is written: which blocks already exist, in the folder and in the cache."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from idsds.common.files import DamagedFileError, remove_abandoned
from idsds.evaluation.cache import Block, Store, cover, linked
from idsds.evaluation.manifest import write_manifest
from idsds.evaluation.plan import Plan, Unit
from idsds.evaluation.records import Run
from idsds.evaluation.result import described
from idsds.evaluation.run import wanted_images

#: For each job, the existing blocks of each unit.
There = list[dict[Unit, list[Block]]]


def opened(folder: Path) -> Run | None:
    """Return the complete run in a folder, or None. Raises OldRecordsError; a damaged manifest causes a warning, and None."""
    try:
        return Run.open(folder)
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        warnings.warn(f"{error}; the manifest is written again", stacklevel=3)
        return None


class Folder:
    """The folder of a run that is being written; ``cache`` holds the blocks of all runs, and is None to share nothing."""

    def __init__(self, path: Path, cache: Store | None) -> None:
        self.path, self.cache = path, cache
        self.blocks, self.kept = Store(path / "blocks"), Store(path / "kept")
        self.run = opened(path)
        self.committed = {} if self.run is None else committed_blocks(self.run)

    @property
    def checkpoints(self) -> Mapping[str, str]:
        """The sha256 of the checkpoints behind the folder's records, by key of the training stage."""
        return {} if self.run is None else self.run.manifest.get("checkpoints", {})

    def find(self, plan: Plan) -> There:
        """Return the existing blocks of a plan: from the folder, and from the cache for what the folder lacks."""
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
        """Prepare the folder for a run: link the blocks of the cache that it will use, and add to the cache the blocks that it lacks.

        A complete run stays complete until the new manifest is written. Raises OSError, naming the file.
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
            with suppress(OSError):  # a cache that cannot be written is ignored
                for block in blocks:
                    self.cache.write(block)
        used = {block.where for picks in cover(blocks, unit.methods, images)[0].values() for block, _ in picks}
        kept = [block for block in blocks if block.where in used or self._owns(block)]
        return [block if self._owns(block) else linked(self.blocks, block) for block in kept]

    def _owns(self, block: Block) -> bool:
        return block.where.startswith(f"{self.path}{os.sep}")

    def from_cache(self, there: There) -> int:
        """Return how many of the blocks come from other runs."""
        return len({block.where for of_job in there for blocks in of_job.values() for block in blocks if not self._owns(block)})


def committed_blocks(run: Run) -> dict[str, list[Block]]:
    """Return the records of a complete run as blocks, by address. A damaged file causes a warning and is left out."""
    committed: dict[str, list[Block]] = {}
    try:
        table = run.images()
    except DamagedFileError as error:
        warnings.warn(f"{error}; the records are computed again", stacklevel=4)
        return committed
    keys = dict(zip(table["image_id"].to_pylist(), table["key"].to_pylist(), strict=True))
    ids = list(keys)
    for entry in [*run.files("deletions"), *run.files("scores")]:
        source = Run(run.folder, run.manifest)  # a separate object: reading a damaged file's remains must not make it seem intact
        for number in _intact(source, entry):
            facts, images = entry["parts"][number], keys
            try:
                if facts["rows"] < len(keys):
                    images = {ids[place]: keys[ids[place]] for place in source.part(entry, number, [])["image"].to_pylist()}
            except DamagedFileError as error:
                warnings.warn(f"{error}; what was in it is computed again", stacklevel=4)
                continue
            methods = () if facts["method"] is None else (facts["method"],)
            taken = {name: facts.get(name, 0) for name in ("forward", "backward", "seconds", "memory")}
            load = partial(_columns_of, str(run.folder), entry["path"], number)
            block = Block(facts["address"], images, methods, load, **taken, where=str(run.folder / entry["path"]))
            committed.setdefault(block.address, []).append(block)
    return committed


def _intact(run: Run, entry: Mapping[str, Any]) -> Collection[int]:
    """Return the indices of the intact parts of a file. A damaged file causes a warning that says what is computed again."""
    try:
        run.check(entry)
        return range(len(entry["parts"]))
    except DamagedFileError as error:
        intact = run.rescue(entry)
        lost = [facts["method"] or "the drops" for number, facts in enumerate(entry["parts"]) if number not in intact]
        what = f"its {len(intact)} intact parts are kept, {', '.join(lost)} computed again"
        warnings.warn(f"{error}; {what if intact else 'what was in it is computed again'}", stacklevel=5)
        return intact


def _columns_of(folder: str, path: str, number: int) -> pa.Table:
    """Return the columns of a part of a run, in the form of a block's columns. Raises DamagedFileError."""
    run = Run.open(folder)
    entry = next(entry for entry in run.manifest["files"] if entry["path"] == path)
    try:
        run.check(entry)
    except DamagedFileError:
        if number not in run.rescue(entry):
            raise
    return run.part(entry, number, entry["columns"]).drop_columns("image")
