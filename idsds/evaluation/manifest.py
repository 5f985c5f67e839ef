"""The manifest of a run's folder: its format, and the hash that detects changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from idsds.common.files import DamagedFileError, read_json, write_json

MANIFEST = "manifest.json"
#: Increase when the content of blocks or record files changes, so that old ones are not mistaken for new ones.
FORMAT = 5


class OldRecordsError(ValueError):
    """Records in a format that this version cannot read. The message names the folder."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a run's manifest. Raises DamagedFileError if it was changed, and OldRecordsError for another format."""
    manifest = read_json(folder / MANIFEST)
    written = manifest.get("format", 3) if isinstance(manifest, dict) else None
    if isinstance(written, int) and written != FORMAT:
        raise OldRecordsError(
            f"the records in {str(folder)!r} are of format {written}, and this version reads format {FORMAT} alone: "
            "name another output folder, or remove this one"
        )
    if written is None or manifest.get("seal") != _seal(manifest):
        raise DamagedFileError(f"cannot read {str(folder / MANIFEST)!r}: its content is not what was written")
    return manifest


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write a manifest, with its format and a hash of its own content."""
    content = json.loads(json.dumps({"format": FORMAT, **content}))
    write_json(folder / MANIFEST, {**content, "seal": _seal(content)})


def _seal(manifest: Mapping[str, Any]) -> str:
    plain = {name: value for name, value in manifest.items() if name != "seal"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
