"""Paths that mean the same on every system."""

import errno
import subprocess
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from idsds.common import paths
from idsds.models.base import list_models
from idsds.studies.project import project_files

ROOT = Path(__file__).resolve().parents[2]


def tracked():
    shown = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in shown.split("\0") if name]


@pytest.mark.parametrize("listed", [tracked, lambda: [name.as_posix() for name in project_files()]], ids=["tracked", "copied by init"])
def test_every_file_can_be_checked_out_on_windows_and_macos(listed):
    names = listed()
    assert len(names) > 100
    folded = [name.casefold() for name in names]
    assert len(set(folded)) == len(folded), "two names that differ in case only"
    for name in names:
        paths.check_portable(PureWindowsPath(name))
        assert len(name) < 150


@pytest.mark.parametrize("path", [r"C:\runs\a:b", r"runs\what?\x", "runs/aux", "runs/NUL.csv", "runs/x.", r"runs\x \y", r"\\host\disk\a|b"])
def test_a_windows_path_with_a_reserved_name_is_refused(path):
    with pytest.raises(OSError, match="Windows does not allow the name") as raised:
        paths.check_portable(PureWindowsPath(path))
    assert raised.value.errno == errno.EINVAL
    paths.check_portable(PurePosixPath(path))


@pytest.mark.parametrize("path", [r"C:\Users\me\runs\x", r"..\runs\x", r"\\host\disk\runs", "runs/auxiliary/com10", "."])
def test_other_windows_paths_are_allowed(path):
    paths.check_portable(PureWindowsPath(path))


def test_a_name_becomes_part_of_a_file_name():
    assert paths.portable("hub:me/net?*") == "hub_me/net__"
    for name in [*list_models(), *list_models("timm")]:  # so that checkpoints are found by the names that they always had
        assert paths.portable(name) == name
        paths.check_portable(PureWindowsPath("checkpoints") / f"{paths.portable(name)}-trained-0.safetensors")


def test_a_run_belongs_to_its_figures_whatever_the_separator(monkeypatch):
    monkeypatch.setattr(paths, "root", lambda: PureWindowsPath(r"C:\study"))
    monkeypatch.setattr(paths, "resolve", lambda path: PureWindowsPath(r"C:\study") / path)
    assert paths.figures_of(r"runs\mine\rank_methods") == PureWindowsPath("C:/study/figures/mine")
    assert paths.figures_of("runs/alone") == PureWindowsPath("C:/study/runs/alone/figures")
    assert paths.run_of(PureWindowsPath(r"C:\study\figures\mine\x.png")) == PureWindowsPath("C:/study/runs/mine/x")
