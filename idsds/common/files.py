"""Robust files: written atomically, and checked when they are read.

A file appears under its name only when it is complete, even if the process is killed while writing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import filelock
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

#: Name of the lock file in a folder. The file is never removed; only the operating system knows whether the lock is held.
LOCK = ".lock"
#: Seconds after which a temporary file counts as left behind.
ABANDONED = 24 * 3600


class DamagedFileError(ValueError):
    """A stored file cannot be read, or its content does not match its name. The message names it."""


def remove_abandoned(folder: Path, pattern: str = "**/.*.part", older_than: float = ABANDONED) -> None:
    """Remove the files that killed processes left behind in a folder, by the pattern of their paths below it.

    ``older_than`` is the minimum age in seconds since the last write; 0 if no other process can be writing.
    """
    for path in folder.glob(pattern):
        with suppress(OSError):  # another process may remove it, too
            if time.time() - path.stat().st_mtime >= older_than or not older_than:
                path.unlink()


#: The same, once per folder and process.
sweep = lru_cache(maxsize=1024)(remove_abandoned)


@contextmanager
def atomic(path: str | os.PathLike[str], sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to. It is renamed to ``path`` if the block succeeds, and removed if it fails.

    Args:
        path: the file to write or replace; its folder is created.
        sync: whether to wait until content and name are on disk; not needed for files that are checked by hash and can be recomputed.

    Raises:
        OSError: naming ``path`` and the system's reason (no space left, read-only, ...).
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, ".*.part")
        yield partial
        if sync:
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
        if sync:
            _sync_folder(path.parent)
    except OSError as error:
        raise type(error)(error.errno, f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk; skipped if folders cannot be opened (Windows)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a run's folder inside the block; wait while another process or thread holds it.

    The operating system releases the lock when the process ends, however it ends. Over NFS the server must support locks.

    Args:
        folder: created if it does not exist.

    Yields:
        Whether it had to wait.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waited, holder = False, folder / f"{LOCK}.holder"  # its own file: older filelocks empty a lock that others hold
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        waited, other = True, ""
        with suppress(OSError):
            other = holder.read_text(encoding="utf-8")
        print(f"this run waits for {other or 'another process'}, which is writing to {str(folder)!r}", flush=True)
        lock.acquire()
    try:
        with suppress(OSError):
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield waited
    finally:
        with suppress(OSError):
            holder.unlink()
        lock.release()


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def packaged_file(package: str, name: str, sha256: str) -> Path:
    """Return a file inside an installed package, which is not imported, after comparing its hash.

    Raises:
        ModuleNotFoundError: naming the extra, if the package is not installed.
        DamagedFileError: if the file is missing or is not that of the release.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"this needs the package {package!r}: pip install 'idsds[photos]'")
    path = Path(spec.submodule_search_locations[0]) / name
    if not path.is_file():
        raise DamagedFileError(f"the package {package!r} has no file {name!r}: pip install --force-reinstall 'idsds[photos]'")
    if (found := sha256_of(path)) != sha256:
        raise DamagedFileError(f"{str(path)!r} is not the released file: its sha256 is {found}, not {sha256}; it is not read")
    return path


def plain_of(value: object) -> object:
    """Return settings as plain data, for JSON. Raises TypeError for anything else."""
    if hasattr(value, "model_dump"):
        return value.model_dump()
    raise TypeError(f"cannot address content by a {type(value).__name__}: {value!r}")


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Write plain data as an indented JSON file, atomically."""
    with atomic(path) as partial:
        partial.write_text(json.dumps(content, indent=2, default=plain_of) + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read plain data from a JSON file. Raises DamagedFileError, naming the file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DamagedFileError(f"cannot read {str(path)!r}: {error}") from error


#: Options for writing parquet files: each page has a checksum.
PARQUET: Mapping[str, Any] = {"compression": "zstd", "write_page_checksum": True}


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever an unreadable file of records raises inside the block into a DamagedFileError that names the file."""
    try:
        yield
    except DamagedFileError:
        raise
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"cannot read the records in {str(path)!r}: {error}") from error


def with_facts(table: pa.Table, facts: Mapping[str, object]) -> pa.Table:
    """Return the table with plain data in its metadata."""
    return table.replace_schema_metadata({**(table.schema.metadata or {}), b"idsds": json.dumps(facts).encode()})


def facts_of(schema: pa.Schema) -> dict[str, Any]:
    """Return the data stored by :func:`with_facts`. Raises KeyError, TypeError or ValueError if there is none."""
    return json.loads(schema.metadata[b"idsds"])


def write_table(path: str | os.PathLike[str], table: pd.DataFrame, facts: Mapping[str, object]) -> None:
    """Write a frame as a parquet file with ``facts`` (plain data: passes, seconds, ...) in its metadata, atomically."""
    with atomic(path) as partial:
        pq.write_table(with_facts(pa.Table.from_pandas(table, preserve_index=False), facts), partial, **PARQUET)


def read_table(path: str | os.PathLike[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read the frame and the facts of a file from :func:`write_table`. Raises DamagedFileError, naming the file."""
    with reading(path):
        arrow = pq.read_table(path, page_checksum_verification=True)
        return arrow.to_pandas(), facts_of(arrow.schema)


def write_hashed(folder: Path, table: pa.Table) -> Path:
    """Write a table as a read-only parquet file named by the hash of its bytes, without waiting for the disk; return its path."""
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream, **PARQUET)
    content = stream.getvalue()
    path = folder / f"{hashlib.sha256(content).hexdigest()[:40]}.parquet"
    with atomic(path, sync=False) as partial:
        with open(partial, "wb") as file:
            file.write(content)
        os.chmod(partial, 0o444)
    return path


def read_hashed(path: str | os.PathLike[str]) -> pa.BufferReader:
    """Read a file from :func:`write_hashed`. Raises DamagedFileError if it is missing or its content does not match its name."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DamagedFileError(f"cannot read the records in {str(path)!r}: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest()[:40] != Path(path).stem:
        raise DamagedFileError(f"cannot read the records in {str(path)!r}: its content does not match its name")
    return pa.BufferReader(content)
