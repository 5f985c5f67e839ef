"""The project's paths, relative to the repository root.

nbval runs a notebook in ``notebooks/`` and papermill in the caller's folder, so a path relative to the working folder would be
ambiguous. ``IDSDS_HOME`` moves the whole tree (cache, runs, figures), ``IDSDS_CACHE`` only the cache, for example to the shared disk of
a cluster.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path, PurePath, PureWindowsPath

#: The file that marks a folder that ``python -m idsds init`` has filled.
MARK = ".idsds"
#: Characters that Windows does not allow in a name, where ``:`` would even write elsewhere without an error; and the names of its devices.
RESERVED = re.compile(r'[<>:"|?*\\\x00-\x1f]')
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def root() -> Path:
    """Return the folder that relative paths start from.

    It is ``IDSDS_HOME``; or else the repository root; or else, for an installation without a repository, the working folder or the nearest
    one above it that ``python -m idsds init`` has filled; or else the working folder.
    """
    if home := os.environ.get("IDSDS_HOME"):
        return Path(home).expanduser().resolve()
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file():
        return checkout
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / MARK).is_file()), here)


def resolve(path: str | os.PathLike[str]) -> Path:
    """Return an absolute path unchanged, and resolve a relative one against the repository root."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else root() / path


def cache() -> Path:
    """Return the folder of cached checkpoints, drops and records, ``IDSDS_CACHE`` or ``cache/``; it may be deleted at any time."""
    return resolve(os.environ.get("IDSDS_CACHE", "cache"))


def portable(name: str) -> str:
    """Return a model's or table's name as part of a file's name on every system: a slash makes a folder, what Windows reserves is ``_``."""
    return RESERVED.sub("_", name)


def check_portable(path: PurePath) -> None:
    """Raise OSError for a Windows path with a name that Windows reserves; other systems allow every name."""
    for name in path.parts[bool(path.anchor) :] if isinstance(path, PureWindowsPath) else ():
        if RESERVED.search(name) or DEVICES.fullmatch(name) or (name.rstrip(". ") != name and name != ".."):
            raise OSError(errno.EINVAL, f"Windows does not allow the name {name!r} in {str(path)!r}")


def figures_of(output: str | os.PathLike[str]) -> Path:
    """Return the folder for a run's figures: ``figures/<profile>`` for ``runs/<profile>/<notebook>``, else ``figures`` inside it."""
    output = resolve(output)
    if output.parent.parent == root() / "runs":
        return root() / "figures" / output.parent.name
    return output / "figures"


def run_of(figure: Path) -> Path:
    """Return the folder of the run whose figure this is, the inverse of :func:`figures_of`; it need not be there."""
    if figure.parent.parent == root() / "figures":
        return root() / "runs" / figure.parent.name / figure.stem
    return figure.parent.parent


def check_creatable(folder: str | os.PathLike[str]) -> Path:
    """Check, without writing anything, that a folder could be created and written to.

    Raises:
        OSError: naming the folder and the reason.
    """
    if not os.fspath(folder).strip():
        raise OSError(errno.EINVAL, "the output folder has no name")
    folder = resolve(folder)
    check_portable(folder)
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"cannot write to the output folder {str(folder)!r}: {str(nearest)!r} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"cannot write to the output folder {str(folder)!r}: {os.strerror(errno.EACCES)}")
    return folder


def check_writable(folder: str | os.PathLike[str]) -> Path:
    """Create ``folder`` and check that a file can be written in it.

    Raises:
        OSError: naming the folder and the system's reason; nothing is left behind.
    """
    folder = resolve(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(error.errno, f"cannot write to the output folder {str(folder)!r}: {error.strerror}") from error
    return folder
