"""Hashes of everything that determines a record: code, weights, pixels, and the user's own objects.

An object has the same hash in every process and on every machine; objects that could give different numbers have different hashes. A
user's object is hashed together with everything that it reaches: see :mod:`idsds.common.reach`.
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

from idsds.common.files import plain_of, sha256_of
from idsds.common.origin import Unknown
from idsds.common.reach import digest_of

PACKAGE = Path(__file__).resolve().parents[1]
# Modules of the package that do not affect any number.
INDIFFERENT = (
    "idsds.common.hashing",
    "idsds.common.reach",
    "idsds.common.bytecode",
    "idsds.common.origin",
    "idsds.common.purity",
    "idsds.common.switches",
    "idsds.common.paths",
    "idsds.common.registry",
    "idsds.common.settings",
    "idsds.common.devices",
    "idsds.common.files",
)


def file_digest(path: Path) -> str:
    """Return a hash of a file's bytes."""
    return sha256_of(path)[:20]


def code_digest(function: Callable) -> str:
    """Hash registered code: the package's own by its module and those that it imports, a user's by :func:`own_digest`."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    if module is None or not module.__name__.startswith("idsds."):
        return own_digest(function)
    return hashlib.sha256((sources(module.__name__) + function.__qualname__).encode()).hexdigest()[:20]


@lru_cache(maxsize=256)
def sources(name: str) -> str:
    """Return a hash of the source of a module of the package and of those that it imports."""
    hasher = hashlib.sha256()
    for module in sorted(modules_of(name)):
        hasher.update(_code(module).encode())
    return hasher.hexdigest()


@lru_cache(maxsize=256)
def _code(module: str) -> str:
    """Return the source of a module of the package without comments and docstrings, which affect no number."""
    tree = ast.parse(_file(module).read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def modules_of(name: str) -> set[str]:
    """Return a module of the package and, recursively, the package's modules that its source imports from."""
    modules: set[str] = set()
    waiting = [name]
    while waiting:
        module = waiting.pop()
        if module not in modules and module not in INDIFFERENT:
            modules.add(module)
            waiting += {_origin(source, what) for what, source in _imported(module).items()}
    return modules


def _origin(module: str, name: str) -> str:
    """Return the module that ``from module import name`` leads to, followed through the ``__init__`` of packages."""
    if _file(f"{module}.{name}").is_file():
        return f"{module}.{name}"
    if _file(module).name != "__init__.py":
        return module
    further = _imported(module).get(name)
    return module if further is None or further == module else _origin(further, name)


@lru_cache(maxsize=256)
def _imported(module: str) -> dict[str, str]:
    """Return the names that a module imports from the package, each with the module or package that it comes from."""
    statements = [node for node in ast.walk(ast.parse(_file(module).read_bytes())) if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module for node in statements if (node.module or "").split(".")[0] == "idsds" for alias in node.names}


def _file(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")


@lru_cache(maxsize=64)
def study_digest(name: str) -> str:
    """Hash the package less comments and docstrings, and less the studies that the study ``name`` does not import."""
    study, parts = f"idsds.studies.{name}", []
    own = modules_of(study) if _file(study).is_file() else set()  # a user's notebook need not have a study
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(("idsds", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        if module in own or not module.startswith("idsds.studies."):
            parts += [module, _code(module)]
    return digest(parts)


@lru_cache(maxsize=1)
def package_digest() -> str:
    """Return a hash of the package's whole source on this machine."""
    return digest(sorted((path.relative_to(PACKAGE).as_posix(), sha256_of(path)) for path in PACKAGE.rglob("*.py")))


class OwnImages:
    """Ids, targets and addresses of a user's images, each read once, however many models are evaluated.

    An image is hashed when its address is first asked for, as runs without a folder never do.

    Args:
        dataset: of items (image, target, image_id), or None for an image that cannot be read and is left out.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._labels: dict[int, tuple[str, int]] = {}
        self._keys: dict[int, str] = {}

    def __getitem__(self, index: int) -> tuple[str, int, str]:
        key = self.key(index)  # first, since it learns the label on the way
        return *self.label(index), key

    def label(self, index: int) -> tuple[str, int]:
        """Return the id and the target of an image, -1 for one that cannot be read."""
        if index not in self._labels:
            known = [getattr(self.dataset, name, None) for name in ("image_ids", "targets")]  # the package's data sets know them
            if None not in known:
                self._labels[index] = known[0][index], known[1][index]
            else:
                item = self.dataset[index]
                self._labels[index] = (str(index), -1) if item is None else (item[2], int(item[1]))
        return self._labels[index]

    def key(self, index: int) -> str:
        """Return the hash of an image with its target and id; empty for one that cannot be read."""
        if index not in self._keys:
            item = self.dataset[index]
            self._keys[index] = "" if item is None else self._hash(*item)
            self._labels.setdefault(index, self.label(index) if item is None else (item[2], int(item[1])))
        return self._keys[index]

    def _hash(self, image: Tensor, target: int, image_id: str) -> str:
        # Some protocols undo the normalisation, so it affects their scores.
        normalisation = getattr(self.dataset, "normalisation", None)
        hasher = hashlib.sha256(repr((str(image.dtype), tuple(image.shape), int(target), image_id, normalisation)).encode())
        hasher.update(image.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return hasher.hexdigest()[:20]


class Digest(str):
    """A hash. If the content could not be determined, it is random and ``reason`` says why."""

    reason: str = ""


def own_digest(thing: Any, *, judged: bool = False) -> Digest:
    """Return a hash of a user's object and of everything that it reaches, by the rule of :mod:`idsds.common.reach`.

    Args:
        thing: a net, a method, or the value of a setting.
        judged: whether the net is put into eval mode before it is used, so that its modes do not matter.

    Returns:
        20 hexadecimal digits. If it cannot be determined what the object computes, they are random, and ``reason`` says why.
    """
    try:
        return Digest(digest_of(thing, judged=judged))
    except Unknown as error:
        new = Digest(uuid.uuid4().hex[:20])
        new.reason = str(error)
        return new


def digest(content: object) -> str:
    """Return a hash of plain data (dicts in any order, lists, tuples, strings, numbers, None), 20 hexadecimal digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=plain_of)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


# Packages that compute numbers or produce images; the last two store them.
VERSIONED = ("idsds", "torch", "torchvision", "captum", "torchcam", "numpy", "scipy", "timm", "bcos", "torchmetrics", "lightning-fabric")
VERSIONED += ("mlxtend", "scikit-learn", "pillow", "pandas", "pyarrow")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute numbers."""
    return dict(_versions())


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    installed = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "not installed"
    return installed
