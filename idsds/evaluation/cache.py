"""Blocks of records, in the folder of a run while it runs and in the cache that all runs share.

A block holds the output of one computation for some images: the method-independent columns, or the records of the methods that share the
computation. A block is complete or absent. Its file is named by the hash of its bytes, and the hash is verified at every read, so that
several runs can safely link to one file: an edit in place is detected. Blocks are never extended: images and methods added later
get blocks of their own.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from idsds.common import paths
from idsds.common.files import DamagedFileError, atomic, facts_of, read_hashed, reading, remove_abandoned, with_facts, write_hashed

SWITCH = "IDSDS_RECORD_CACHE"
OFF = ("0", "off", "false", "no")


def record_cache() -> Store | None:
    """Return the store of the blocks that runs share, ``records`` in the cache; None if ``IDSDS_RECORD_CACHE`` is 0."""
    return None if os.environ.get(SWITCH, "1").lower() in OFF else Store(paths.cache() / "records")


@dataclass(frozen=True)
class Block:
    """The output of a computation for some images.

    Args:
        address: the computation's address, a hash of everything but the images that determines it.
        images: the address of each image by id, in the order of the rows.
        methods: names of the methods, in the order of their records; empty for method-independent columns.
        load: reads the columns, ``len(images)`` rows for each method. Raises DamagedFileError.
        forward, backward, seconds: passes and time of the computation.
        memory: peak memory in bytes per image of a batch; 0 if unknown.
        where: the file, for messages.
    """

    address: str
    images: Mapping[str, str]
    methods: tuple[str, ...]
    load: Callable[[], pa.Table]
    forward: float = 0
    backward: float = 0
    seconds: float = 0
    memory: float = 0
    where: str = "memory"

    def only(self, image_ids: Sequence[str], methods: Sequence[str] | None = None) -> Block:
        """Return the block restricted to some images and methods, in this order, with their share of its cost."""
        methods = self.methods if methods is None else tuple(methods)
        if methods == self.methods and list(image_ids) == list(self.images):
            return self
        place = {image_id: number for number, image_id in enumerate(self.images)}
        rows = np.fromiter((place[image_id] for image_id in image_ids), np.int64, len(image_ids))
        starts = [len(self.images) * self.methods.index(method) for method in methods] or [0]
        share = len(image_ids) / max(1, len(self.images))
        return replace(
            self,
            images={image_id: self.images[image_id] for image_id in image_ids},
            methods=methods,
            load=partial(_taken, self.load, np.concatenate([start + rows for start in starts])),
            forward=self.forward * share,
            backward=self.backward * share,
            seconds=self.seconds * share,
        )


def _taken(load: Callable[[], pa.Table], rows: np.ndarray) -> pa.Table:
    return load().take(pa.array(rows))


class Store:
    """A folder of blocks, created by the first write, with a subfolder per address and a file per block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, block: Block) -> Block:
        """Write a block, and return it as read from the file. Raises OSError, naming the file."""
        facts = {
            "address": block.address,
            "images": list(block.images),
            "keys": None if list(block.images.values()) == list(block.images) else list(block.images.values()),
            "methods": list(block.methods),
            "passes": [round(block.forward, 3), round(block.backward, 3)],
            "seconds": round(block.seconds, 6),
            "memory": round(block.memory),
        }
        path = write_hashed(self.folder / block.address, with_facts(block.load(), facts))
        return replace(block, load=partial(_columns, str(path)), where=str(path))

    def find(self, address: str) -> list[Block]:
        """Return the blocks of a computation. A damaged block causes a warning and is removed, so that it is computed again."""
        folder, found = self.folder / address, []
        if not folder.is_dir():
            return found
        remove_abandoned(folder)
        for path in sorted(folder.glob("*.parquet")):
            try:
                found.append(_opened(path, address))
            except DamagedFileError as error:
                warnings.warn(f"{error}; what was in it is computed again", stacklevel=4)
                with suppress(OSError):
                    path.unlink()
        return found

    def add(self, path: Path, address: str) -> Path:
        """Link a block's file from another store, or copy it from another disk. Raises OSError, naming the new file."""
        here = self.folder / address / path.name
        if not here.is_file():
            with atomic(here, sync=False) as partial_path:
                try:
                    os.link(path, partial_path)
                except OSError:  # another disk, or a file system without hard links
                    shutil.copyfile(path, partial_path)
                    os.chmod(partial_path, 0o444)
        return here

    def remove(self) -> None:
        """Remove the folder with all blocks."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _opened(path: Path, address: str) -> Block:
    """Return the block in a file, after checking that the file is intact."""
    with reading(path):
        facts = facts_of(pq.read_schema(read_hashed(path)))
        if facts["address"] != address:
            raise ValueError("it belongs to another computation")
        images = dict(zip(facts["images"], facts["keys"] or facts["images"], strict=True))
        forward, backward = facts["passes"]
        taken = {"forward": forward, "backward": backward, "seconds": facts["seconds"], "memory": facts.get("memory", 0)}
        return Block(address, images, tuple(facts["methods"]), partial(_columns, str(path)), **taken, where=str(path))


def _columns(path: str) -> pa.Table:
    with reading(path):
        table = pq.read_table(read_hashed(path), page_checksum_verification=True)
        facts = facts_of(table.schema)
    if table.num_rows != len(facts["images"]) * max(1, len(facts["methods"])):
        raise DamagedFileError(f"cannot read the records in {path!r}: rows are missing for some of its images and methods")
    return table.replace_schema_metadata(None)


def linked(store: Store, block: Block) -> Block:
    """Link a block of another store into this one, and return it. Raises OSError, naming the new file."""
    here = str(store.add(Path(block.where), block.address))
    return replace(block, load=partial(_columns, here), where=here)


def share(block: Block, cache: Store | None) -> None:
    """Add a block's file to the cache for other runs. If the cache cannot be written, warn and continue: only other runs lose time."""
    if cache is None:
        return
    try:
        cache.add(Path(block.where), block.address)
    except OSError as error:
        warnings.warn(f"records are not shared with other runs: {error}. {SWITCH}=0 turns sharing off", stacklevel=2)


#: By method (None: method-independent columns), the blocks to use, each with the ids of the images to take from it.
Cover = dict[str | None, list[tuple[Block, list[str]]]]


def cover(blocks: Iterable[Block], methods: Sequence[str], images: Mapping[str, str]) -> tuple[Cover, set[str]]:
    """Choose the blocks to take the images from.

    Args:
        blocks: of one computation; blocks that hold more of the methods are preferred, then those that come first.
        methods: requested methods; empty for method-independent columns.
        images: addresses of the requested images, by id.

    Returns:
        The blocks for each method, and the ids of the images that are missing for some method.
    """
    ordered = sorted(blocks, key=lambda block: -len({*methods} & {*block.methods}))
    chosen: Cover = {}
    missing: set[str] = set()
    for method in methods or (None,):
        left, picks = dict(images), []
        for block in ordered:
            if left and (method is None or method in block.methods):
                there = [image_id for image_id, key in block.images.items() if key and left.get(image_id) == key]
                if there:
                    picks.append((block, there))
                    for image_id in there:
                        del left[image_id]
        chosen[method] = picks
        missing |= left.keys()
    return chosen, missing


def gathered(picks: Collection[tuple[Block, list[str]]], method: str | None, place: Mapping[str, int]) -> pa.Table:
    """Return the columns of a method from several blocks, rows in image order; the first column, ``image``, is the image's position.

    Raises DamagedFileError, which names the file, if one cannot be read or has other columns than the first.
    """
    tables, rows = [], []
    for block, image_ids in picks:
        table = block.only(image_ids, () if method is None else (method,)).load()
        if tables and table.schema != tables[0].schema:
            raise DamagedFileError(f"the columns in {block.where!r} are not those of the computation's other blocks")
        tables.append(table)
        rows.append(np.fromiter((place[image_id] for image_id in image_ids), np.int32, len(image_ids)))
    positions = np.concatenate(rows)
    table = pa.concat_tables(tables).add_column(0, "image", pa.array(positions))
    if (np.diff(positions) > 0).all():
        return table
    return table.take(pa.array(np.argsort(positions, kind="stable")))


#: Columns of a batch or a block, by name.
Columns = Mapping[str, Any]


def as_array(values: Any) -> np.ndarray:
    """Return the values of a batch, (B,) or (B, n), as an array on the CPU."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.dtype in (torch.float16, torch.bfloat16) else values).numpy()


def joined(parts: Sequence[Columns]) -> Columns:
    """Return the concatenated columns of several batches."""
    return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def as_table(parts: Sequence[Columns]) -> pa.Table:
    """Return the columns of several batches, (B,) or (B, n), as a table; (B, n) becomes fixed-size lists."""
    columns = {}
    for name, values in joined(parts).items():
        flat = pa.array(values.reshape(-1) if values.ndim > 1 else values)
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:]))) if values.ndim > 1 else flat
    return pa.table(columns)
