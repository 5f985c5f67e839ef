"""Files inside installed packages: weights and photos that ``pip`` brings, so that nothing is downloaded at run time."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from idsds.common.files import DamagedFileError, sha256_of


def packaged_file(package: str, name: str, sha256: str) -> Path:
    """Return a file inside an installed package after comparing its hash. The package is not imported.

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
