"""What determines a record, as hashes: code, weights, pixels, and whatever a user hands in.

The same thing gets the same hash in another process, on another day and on another machine; a thing that would give other numbers gets
another. What is the user's is hashed with all that it reaches: see :mod:`idsds.common.reach`.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import sys
import uuid
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from idsds.common.origin import Unknown
from idsds.common.reach import digest_of

PACKAGE = Path(__file__).resolve().parents[1]
# Modules of the package in which no number is computed.
INDIFFERENT = (
    "idsds.common.hashing",
    "idsds.common.reach",
    "idsds.common.bytecode",
    "idsds.common.origin",
    "idsds.common.switches",
    "idsds.common.paths",
    "idsds.common.registry",
    "idsds.common.settings",
    "idsds.common.devices",
    "idsds.common.files",
)


def file_digest(path: Path) -> str:
    """Return a hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:20]


def code_digest(function: Callable) -> str:
    """A hash of registered code: the package's own by the source of its module and of those it imports, else :func:`own_digest`."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    if module is None or not module.__name__.startswith("idsds."):
        return own_digest(function)
    return hashlib.sha256((_sources(module.__name__) + function.__qualname__).encode()).hexdigest()[:20]


@lru_cache(maxsize=256)
def _sources(name: str) -> str:
    found = hashlib.sha256()
    for module in sorted(modules_of(name)):
        found.update(_file(module).read_bytes())
    return found.hexdigest()


def modules_of(name: str) -> set[str]:
    """A module of the package and all those of the package that it takes something from, as its source says."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        module = waiting.pop()
        if module not in found and module not in INDIFFERENT:
            found.add(module)
            waiting += {_origin(source, what) for what, source in _imported(module).items()}
    return found


def _origin(module: str, name: str) -> str:
    """Where ``from module import name`` leads: to a module, through the ``__init__`` of packages."""
    if _file(f"{module}.{name}").is_file():
        return f"{module}.{name}"
    if _file(module).name != "__init__.py":
        return module
    further = _imported(module).get(name)
    return module if further is None or further == module else _origin(further, name)


@lru_cache(maxsize=256)
def _imported(module: str) -> dict[str, str]:
    """By name, the module or package within this one that it is imported from."""
    statements = [node for node in ast.walk(ast.parse(_file(module).read_bytes())) if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module for node in statements if (node.module or "").split(".")[0] == "idsds" for alias in node.names}


def _file(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")


@lru_cache(maxsize=1)
def package_digest() -> str:
    """A hash of all the source of the package, as it lies on this machine."""
    found = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda path: path.relative_to(PACKAGE).as_posix()):
        found.update(f"{path.relative_to(PACKAGE).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()[:20]


class OwnImages:
    """Id, target and address of a user's images, each read once, however many models are evaluated.

    Args:
        dataset: of items (image, target, image_id), or None for an image that cannot be read and is to be left out.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._known: dict[int, tuple[str, int, str]] = {}

    def __getitem__(self, index: int) -> tuple[str, int, str]:
        if index not in self._known:
            self._known[index] = self._look_at(index)
        return self._known[index]

    def _look_at(self, index: int) -> tuple[str, int, str]:
        item = self.dataset[index]
        if item is None:
            known = [getattr(self.dataset, name, None) for name in ("image_ids", "targets")]
            return (str(index), -1, "") if None in known else (known[0][index], known[1][index], "")
        image, target, image_id = item
        # Some protocols take a normalisation back.
        normalisation = getattr(self.dataset, "normalisation", None)
        found = hashlib.sha256(repr((str(image.dtype), tuple(image.shape), int(target), image_id, normalisation)).encode())
        found.update(_bytes(image))
        return image_id, int(target), found.hexdigest()[:20]


class Digest(str):
    """A hash; with a ``reason`` where it is none, but a number that is new each time."""

    reason: str = ""


def own_digest(thing: Any, *, judged: bool = False) -> Digest:
    """Return a hash of something of the user's and of all that it reaches, by the rule of :mod:`idsds.common.reach`.

    Args:
        thing: a net, a method, a value of a setting.
        judged: a net that is put into eval mode before it is used: its modes do not count.

    Returns:
        20 hexadecimal digits. Where it cannot be established what the thing computes, they are new each time, and ``reason`` says why.
    """
    try:
        return Digest(digest_of(thing, judged=judged))
    except Unknown as error:
        new = Digest(uuid.uuid4().hex[:20])
        new.reason = str(error)
        return new


def _bytes(values: Tensor) -> bytes:
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def digest(content: object) -> str:
    """Return a hash of plain data (dicts in any order, lists, tuples, strings, numbers, None), 20 hexadecimal digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _plain(value: object) -> object:
    if hasattr(value, "model_dump"):
        return value.model_dump()
    raise TypeError(f"cannot address content by a {type(value).__name__}: {value!r}")


# What computes numbers or makes images; the last two store them.
VERSIONED = ("idsds", "torch", "torchvision", "captum", "torchcam", "numpy", "scipy", "timm", "bcos", "torchmetrics", "lightning-fabric")
VERSIONED += ("mlxtend", "scikit-learn", "pillow", "pandas", "pyarrow")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute numbers."""
    return dict(_versions())


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
