"""Check that the workers of a cluster compute the same as the caller: with the same code and versions, and on the same disk."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from idsds.common.files import atomic
from idsds.common.hashing import package_digest, versions

if TYPE_CHECKING:
    from dask.distributed import Client

#: Seconds until a file written by one machine must be visible to another: network disks are slow to synchronise.
PATIENCE = 5.0


class WorkerError(RuntimeError):
    """A worker does not match the caller's code, versions or disk. The message names the worker and every difference."""


@dataclass(frozen=True)
class Caller:
    """What workers must have in common with the process that sends them work.

    Args:
        code: a hash of the package's source.
        versions: of Python and all packages that compute numbers.
        tokens: content of the files that the caller has written to the shared folders, by path.
    """

    code: str
    versions: Mapping[str, str]
    tokens: Mapping[str, str]


@contextmanager
def caller(folders: Sequence[Path]) -> Iterator[Caller]:
    """Yield what workers must have in common with this process. Inside the block each folder contains a small file to check for.

    Raises OSError, which names it, if a folder cannot be written.
    """
    tokens = {str(folder / f".shared.{uuid.uuid4().hex}.part"): uuid.uuid4().hex for folder in folders}
    try:
        for path, content in tokens.items():
            with atomic(path) as partial:
                partial.write_text(content, encoding="utf-8")
        yield Caller(package_digest(), versions(), tokens)
    finally:
        for path in tokens:
            with suppress(OSError):
                os.unlink(path)


def differences(expected: Caller) -> list[str]:
    """Return how this process differs from the caller, one clause per difference."""
    faults = []
    if package_digest() != expected.code:
        faults.append(f"its idsds source differs ({package_digest()}, the caller has {expected.code})")
    own = versions()
    for name, version in expected.versions.items():
        if own.get(name) != version:
            faults.append(f"it has {name} {own.get(name)}, the caller has {version}")
    for path, content in expected.tokens.items():
        if not _is_there(Path(path), content):
            faults.append(f"it does not see what the caller has written to {os.path.dirname(path)!r}: that folder must be on a shared disk")
    return faults


def _is_there(path: Path, content: str) -> bool:
    end = time.monotonic() + PATIENCE
    while True:
        with suppress(OSError):
            return path.read_text(encoding="utf-8") == content
        if time.monotonic() > end:
            return False
        time.sleep(0.1)


def check_worker(expected: Caller) -> None:
    """Raise WorkerError if this worker process differs from the caller."""
    if faults := differences(expected):
        raise WorkerError(f"{worker_name()} cannot be used: {'; '.join(faults)}")


def check_workers(client: Client, expected: Caller) -> None:
    """Compare all connected workers with the caller. Workers that connect later check themselves before their first task.

    Raises WorkerError, which names each worker that differs.
    """
    answers = client.run(differences, expected, on_error="return")
    faults = [
        f"worker {address}: {'; '.join(answer) if isinstance(answer, list) else f'{type(answer).__name__}: {answer}'}"
        for address, answer in answers.items()
        if answer
    ]
    if faults:
        raise WorkerError(f"{len(faults)} of {len(answers)} workers cannot be used. {' | '.join(faults)}")


def worker_name() -> str:
    """Return the address, process and machine of this worker, for messages."""
    from dask.distributed import get_worker

    where = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        return f"worker {get_worker().address} ({where})"
    except ValueError:  # not a worker
        return where
