"""Files of records that grow, in the folder of a run and in the cache that all runs share.

A file belongs to one block of a data set's fixed order, one model and one computation. It holds a row for each image and method that was
asked for so far, and in its metadata which images these are and what they took: when more images or methods are asked for, no more than
those are computed. A run's folder is complete by itself. What it lacks is taken from the cache where another run has left it, and what it
gains is left there: as hard links, which take no room, or as copies between two disks. No file is ever changed in place.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from idsds.common import paths
from idsds.common.files import DamagedFileError, atomic, read_facts, read_table, write_table

SWITCH = "IDSDS_RECORD_CACHE"
OFF = ("0", "off", "false", "no")


def record_cache() -> Path | None:
    """The folder of the records that runs share, ``records`` in the cache; None where ``IDSDS_RECORD_CACHE`` is 0."""
    return None if os.environ.get(SWITCH, "1").lower() in OFF else paths.cache() / "records"


@dataclass(frozen=True)
class Part:
    """Images of a file that were computed together.

    Args:
        images: by id, the address of each image.
        methods: that have a row for each of them.
        forward, backward: passes that they took, all together.
        seconds: that they took.
    """

    images: Mapping[str, str]
    methods: tuple[str, ...] = ()
    forward: float = 0
    backward: float = 0
    seconds: float = 0

    def only(self, image_ids: Collection[str]) -> Part:
        """The part of some of the images, with their share of passes and seconds."""
        kept = {name: key for name, key in self.images.items() if name in image_ids}
        share = len(kept) / max(1, len(self.images))
        return replace(self, images=kept, forward=self.forward * share, backward=self.backward * share, seconds=self.seconds * share)

    @property
    def facts(self) -> dict[str, Any]:
        """As it is stored; an address that is the id is not written twice."""
        keys = list(self.images.values())
        plain = {"images": list(self.images), "keys": None if keys == list(self.images) else keys, "methods": list(self.methods)}
        return {**plain, "forward": self.forward, "backward": self.backward, "seconds": round(self.seconds, 4)}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Part:
        """The part that was stored."""
        images = dict(zip(facts["images"], facts["keys"] or facts["images"], strict=True))
        return cls(images, tuple(facts["methods"]), facts["forward"], facts["backward"], facts["seconds"])


@dataclass(frozen=True)
class Sheet:
    """The content of a file: its rows, and the parts that they came in."""

    frame: pd.DataFrame
    parts: tuple[Part, ...]

    @classmethod
    def read(cls, path: Path) -> Sheet:
        """Raises DamagedFileError, naming the file."""
        frame, facts = read_table(path)
        return cls(frame, _parts(path, facts))

    @property
    def held(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """The methods that are there, by id and address of the image."""
        return {image: part.methods for part in self.parts for image in part.images.items()}

    def only(self, image_ids: Collection[str], methods: Collection[str]) -> Sheet:
        """The rows of some images and methods; the frame itself where these are all."""
        parts = tuple(part.only(image_ids) for part in self.parts)
        frame = self.frame
        if any(len(one.images) < len(other.images) for one, other in zip(parts, self.parts, strict=True)):
            frame = frame[frame["image_id"].isin(image_ids)]
        if any(set(part.methods) - set(methods) for part in parts):
            frame = frame[frame["method"].isin(methods)]
        return Sheet(frame, tuple(part for part in parts if part.images))

    def with_more(self, frames: Sequence[pd.DataFrame], parts: Sequence[Part], order: Sequence[str]) -> Sheet:
        """The sheet with images computed, or computed again; rows in the order of the ids, those of other images last."""
        new = {name for part in parts for name in part.images}
        old = [part.only(part.images.keys() - new) for part in self.parts]
        rows = self.frame[~self.frame["image_id"].isin(new)] if len(self.frame) else self.frame
        frame = pd.concat([*([rows] if len(rows) else []), *frames], ignore_index=True)
        place = {name: number for number, name in enumerate(order)}
        positions = frame["image_id"].map(lambda name: place.get(name, len(place))).to_numpy()
        frame = frame.iloc[np.argsort(positions, kind="stable")].reset_index(drop=True)
        return Sheet(frame, (*(part for part in old if part.images), *parts))

    def write(self, path: Path) -> None:
        """Atomically."""
        write_table(path, self.frame, {"parts": [part.facts for part in self.parts]})


EMPTY = Sheet(pd.DataFrame(), ())


def _parts(path: Path, facts: Mapping[str, Any]) -> tuple[Part, ...]:
    try:
        return tuple(map(Part.of, facts["parts"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"cannot read the records in {str(path)!r}: no {error} in its metadata") from error


class Shelf:
    """The files of a run: those in its own folder, and those that other runs have left in the cache.

    Args:
        folder: of the run.
        cache: of all runs; None to share nothing.
    """

    def __init__(self, folder: Path, cache: Path | None) -> None:
        self.folder, self.cache = folder, cache
        self._read: dict[tuple[int, ...], Sheet] = {}

    def path(self, name: str) -> Path:
        """Where the run has a file."""
        return self.folder / "records" / name

    def find(self, name: str, images: Mapping[str, str], methods: Collection[str]) -> tuple[Sheet, Path | None]:
        """What there is of a file: as the run has it, or where that lacks something, as the cache does if it has all of that and more.

        Args:
            name: of the file.
            images: wanted, by id the address of each.
            methods: wanted.

        Returns:
            The content, and the file in the cache that it is to be taken from, if it is that one.
        """
        own = self._sheet(self.path(name))
        if self.cache is None or (own is not None and _cells(own, images, methods) == _all(images, methods)):
            return own or EMPTY, None
        shared = self._sheet(self.cache / name)
        if shared is None or (own is not None and (not _covers(shared, own) or _covers(own, shared))):
            return own or EMPTY, None
        return shared, self.cache / name

    def read(self, path: Path) -> Sheet:
        """A file's content; what has been read under this or another name is not read again. Raises DamagedFileError."""
        stamp = _stamp(path)
        if stamp not in self._read:
            self._read[stamp] = Sheet.read(path)
        return self._read[stamp]

    def parts(self, path: Path) -> tuple[Part, ...]:
        """What a file holds, without its rows. Raises DamagedFileError."""
        known = self._read.get(_stamp(path))
        return _parts(path, read_facts(path)) if known is None else known.parts

    def _sheet(self, path: Path) -> Sheet | None:
        """None for a file that is not there, or damaged, which is named and made again."""
        if not path.is_file():
            return None
        try:
            return self.read(path)
        except DamagedFileError as error:
            warnings.warn(f"{error}; what was in it is computed again", stacklevel=6)
            return None


def _stamp(path: Path) -> tuple[int, ...]:
    """The same for two links to one file, another for one that was written anew."""
    try:
        state = os.stat(path)
    except OSError as error:
        raise DamagedFileError(f"cannot read the records in {str(path)!r}: {error}") from error
    return state.st_dev, state.st_ino, state.st_mtime_ns, state.st_size


def take(cached: Path, path: Path) -> None:
    """Bring a file of the cache into a run's folder. Raises OSError, naming the run's file."""
    with atomic(path, sync=False) as partial:
        _link(cached, partial)


def leave(path: Path, cache: Path | None) -> None:
    """Leave a run's file in the cache for other runs, unless one is there that holds more.

    A cache that cannot be written costs the other runs time and this one nothing: it is named, and the run goes on.
    """
    if cache is None:
        return
    shared = cache / path.name
    try:
        if shared.is_file() and (os.path.samefile(path, shared) or _size(shared) > _size(path)):
            return
        with atomic(shared, sync=False) as partial:
            _link(path, partial)
    except OSError as error:
        warnings.warn(f"records are not shared with other runs: {error}. {SWITCH}=0 turns sharing off", stacklevel=2)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one that has no links
        shutil.copyfile(source, target)
        with open(target, "rb+") as file:
            os.fsync(file.fileno())


def _size(path: Path) -> int:
    """Rows that a file holds, at least; 0 for a damaged one."""
    try:
        return sum(len(part.images) * max(1, len(part.methods)) for part in _parts(path, read_facts(path)))
    except DamagedFileError:
        return 0


def _all(images: Mapping[str, str], methods: Collection[str]) -> int:
    return len(images) * max(1, len(methods))


def _cells(sheet: Sheet, images: Mapping[str, str], methods: Collection[str]) -> int:
    """How many of the wanted images and methods are there; for a file that has no methods, images."""
    held, wanted = sheet.held, set(methods)
    return sum(len(wanted & set(held[image])) if wanted else 1 for image in images.items() if image in held)


def _covers(one: Sheet, other: Sheet) -> bool:
    """Whether all of the other's images and methods are there."""
    held = one.held
    return all(image in held and set(methods) <= set(held[image]) for image, methods in other.held.items())
