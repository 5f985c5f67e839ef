"""Whose code an object is: the user's, a library's, or this package's."""

import importlib.metadata
import json
import sys
import types

import numpy as np
import pytest
import torch

from idsds.common.origin import Unknown, imported_by, is_installed, is_patch, is_users, text_of, version_of
from idsds.common.registry import Registry


def written(folder, monkeypatch, **sources):
    """Modules in a folder of the user's, imported."""
    monkeypatch.syspath_prepend(str(folder))
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    for name in sources:
        monkeypatch.delitem(sys.modules, name, raising=False)
        __import__(name)


@pytest.mark.parametrize(
    ("module", "users"), [(None, True), ("__main__", True), ("idsds.common", False), ("json", False), ("numpy", False)]
)
def test_modules(module, users):
    assert is_users(module) == users


def test_a_users_module_is_known_by_its_place(tmp_path, monkeypatch):
    written(tmp_path, monkeypatch, other_of_mine="", mine_alone="def f():\n    import other_of_mine, numpy\n")
    assert is_users("mine_alone")
    assert is_users("mine_alone.inner"), "what belongs to a user's package does too"
    assert imported_by("mine_alone") == ["other_of_mine"], "of the user's, wherever it stands"
    before = text_of("mine_alone")
    (tmp_path / "mine_alone.py").write_text("x = 1")
    assert text_of("mine_alone") != before
    monkeypatch.setitem(sys.modules, "made_up", types.ModuleType("made_up"))
    assert is_users("made_up")
    assert text_of("made_up") == b""


def test_what_is_installed_and_what_a_user_has_put_in_its_place():
    assert all(map(is_installed, (np, json.loads, torch.relu, Registry, len)))
    assert not any(map(is_installed, (test_modules, np.ones(2), "numpy")))
    assert is_patch(test_modules)
    assert not is_patch(json.loads)


def test_versions(monkeypatch):
    assert version_of("torch.nn") == importlib.metadata.version("torch")
    assert version_of("json") == ""
    assert len({version_of("idsds.common.normalisation"), version_of("idsds.common.numbers")}) == 2, "each by what it builds on"
    monkeypatch.setitem(sys.modules, "nowhere_installed", types.ModuleType("nowhere_installed"))
    with pytest.raises(Unknown, match="version of 'nowhere_installed' is unknown"):
        version_of("nowhere_installed")
