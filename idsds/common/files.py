"""Files that survive a crash: written atomically, addressed by what determines their content, checked when read.

A file appears under its name complete or not at all, whatever kills the process meanwhile.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from idsds.common.hashing import _plain


class DamagedFileError(ValueError):
    """A stored file that cannot be read, or does not hold what its name promises; the message names it."""


@lru_cache(maxsize=1024)
def sweep(folder: Path, pattern: str, days: float) -> None:
    """Remove files that killed processes have left, once per folder and process: those that nobody has touched for so many days."""
    for path in folder.glob(pattern):
        with suppress(OSError):  # another process removes it, too
            if time.time() - path.stat().st_mtime > 86400 * days:
                path.unlink()


@contextmanager
def atomic(path: str | os.PathLike[str], sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; it is renamed if the block ends without an error, and deleted otherwise.

    Args:
        path: the file to write or replace; its folder is created.
        sync: whether to wait until the file is on the disk; a link to a file that is there already need not wait.

    Raises:
        OSError: naming ``path`` and the system's reason (no space left, read-only, ...).
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, ".*.part", days=1)
        yield partial
        if sync:
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise type(error)(error.errno, f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Write plain data as an indented JSON file, atomically."""
    with atomic(path) as partial:
        partial.write_text(json.dumps(content, indent=2, default=_plain) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read plain data from a JSON file. Raises DamagedFileError, naming the file."""
    try:
        return json.loads(Path(path).read_text())
    except (ValueError, OSError) as error:
        raise DamagedFileError(f"cannot read {str(path)!r}: {error}") from error


def write_table(path: str | os.PathLike[str], table: pd.DataFrame, facts: Mapping[str, object]) -> None:
    """Write a frame as a parquet file with ``facts`` (plain data: passes, seconds, ...) in its metadata, atomically."""
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"idsds": json.dumps(facts).encode()})
    with atomic(path) as partial:
        pq.write_table(arrow, partial, compression="zstd", write_page_checksum=True)


def read_table(path: str | os.PathLike[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read the frame and the facts of a file from :func:`write_table`. Raises DamagedFileError, naming the file."""
    try:
        arrow = pq.read_table(path, page_checksum_verification=True)
        return arrow.to_pandas(), json.loads(arrow.schema.metadata[b"idsds"])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"cannot read the records in {str(path)!r}: {error}") from error


def read_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read only the facts of a file from :func:`write_table`. Raises DamagedFileError, naming the file."""
    try:
        return json.loads(pq.read_schema(path).metadata[b"idsds"])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"cannot read the records in {str(path)!r}: {error}") from error
