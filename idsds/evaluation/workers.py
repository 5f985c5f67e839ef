"""Whether the workers of a cluster compute what the caller would: with the same code and versions, and on the same disk."""

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

#: Seconds in which a file that one machine has written is to be seen by another: network disks are slow to tell.
PATIENCE = 5.0


class WorkerError(RuntimeError):
    """A worker that would not compute what the caller would, or not where. The message names it and all that differs."""


@dataclass(frozen=True)
class Caller:
    """What workers must have in common with the process that sends them work.

    Args:
        code: a hash of the package's source.
        versions: of Python and all packages that compute numbers.
        tokens: by path, what stands in a file that the caller has written to a folder that all must share.
    """

    code: str
    versions: Mapping[str, str]
    tokens: Mapping[str, str]


@contextmanager
def caller(folders: Sequence[Path]) -> Iterator[Caller]:
    """This process, as its workers must find it; while the block lasts, a small file lies in each of the folders.

    Raises:
        OSError: naming a folder that cannot be written.
    """
    tokens = {str(folder / f".shared.{uuid.uuid4().hex}.part"): uuid.uuid4().hex for folder in folders}
    try:
        for path, content in tokens.items():
            with atomic(path) as partial:
                partial.write_text(content)
        yield Caller(package_digest(), versions(), tokens)
    finally:
        for path in tokens:
            with suppress(OSError):
                os.unlink(path)


def differences(expected: Caller) -> list[str]:
    """What this process has not in common with the caller, a sentence each."""
    found = []
    if package_digest() != expected.code:
        found.append(f"its code of idsds is another ({package_digest()}, the caller has {expected.code})")
    own = versions()
    for name, version in expected.versions.items():
        if own.get(name) != version:
            found.append(f"it has {name} {own.get(name)}, the caller has {version}")
    for path, content in expected.tokens.items():
        if not _is_there(Path(path), content):
            found.append(f"it does not see what the caller has written to {os.path.dirname(path)!r}: that folder must be on a shared disk")
    return found


def _is_there(path: Path, content: str) -> bool:
    end = time.monotonic() + PATIENCE
    while True:
        with suppress(OSError):
            return path.read_text() == content
        if time.monotonic() > end:
            return False
        time.sleep(0.1)


def check_worker(expected: Caller) -> None:
    """Raise WorkerError where this process, which is a worker, differs from the caller."""
    if found := differences(expected):
        raise WorkerError(f"{worker_name()} cannot be used: {'; '.join(found)}")


def check_workers(client: Client, expected: Caller) -> None:
    """Compare all workers that there are. Those that come later compare themselves, before their first task.

    Raises:
        WorkerError: naming each that differs.
    """
    answers = client.run(differences, expected, on_error="return")
    faults = [
        f"worker {address}: {'; '.join(found) if isinstance(found, list) else f'{type(found).__name__}: {found}'}"
        for address, found in answers.items()
        if found
    ]
    if faults:
        raise WorkerError(f"{len(faults)} of {len(answers)} workers cannot be used. {' | '.join(faults)}")


def worker_name() -> str:
    """This worker, for messages: its address, process and machine."""
    from dask.distributed import get_worker

    where = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        return f"worker {get_worker().address} ({where})"
    except ValueError:  # it is none
        return where
