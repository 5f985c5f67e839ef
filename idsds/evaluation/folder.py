"""The folder of a run, from the side of the one who writes: which blocks there are already, in the folder and in the cache."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import pyarrow as pa

from idsds.common.files import DamagedFileError, remove_abandoned
from idsds.evaluation.cache import Block, Store, cover, linked
from idsds.evaluation.plan import Plan, Unit
from idsds.evaluation.records import OldRecordsError, Run, write_manifest
from idsds.evaluation.result import described
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

    @property
    def checkpoints(self) -> Mapping[str, str]:
        """By the key of a stage, the sha256 of the checkpoint that records in the folder were made with."""
        return {} if self.run is None else self.run.manifest.get("checkpoints", {})

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
