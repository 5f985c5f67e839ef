"""What determines a record, as hashes: code, weights, pixels, and whatever a user hands in.

The same thing gets the same hash in another process, on another day and on another machine; a thing that would give other numbers gets
another. A notebook's function is hashed by its source and by the values it refers to, not by its name, its line or its kernel.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import io
import json
import pickle
import platform
import sys
import sysconfig
import types
import uuid
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
PACKAGE = Path(__file__).resolve().parents[1]
# Modules of the package in which no number is computed.
INDIFFERENT = (
    "idsds.common.hashing",
    "idsds.common.paths",
    "idsds.common.registry",
    "idsds.common.settings",
    "idsds.common.devices",
    "idsds.common.files",
)
# What a module carries that says nothing of what it computes: its mode (always eval here), and hooks, whose ids count up in a process.
PASSING = ("training", "entry", "_is_full_backward_hook")


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
            return self.dataset.image_ids[index], self.dataset.targets[index], ""  # type: ignore[attr-defined]
        image, target, image_id = item
        found = hashlib.sha256(repr((str(image.dtype), tuple(image.shape), int(target), image_id)).encode())
        found.update(_bytes(image))
        return image_id, int(target), found.hexdigest()[:20]


def own_digest(thing: Any) -> str:
    """A hash of something of the user's: source, weights, closure, options.

    Something that cannot be pickled gets a number of its own, so that its records are never taken for those of another.
    """
    # Without pickle's memo first: with it the bytes depend on which equal strings happen to be one object. It is needed for cycles.
    for fast in (True, False):
        stream = io.BytesIO()
        try:
            _Pickler(stream, fast).dump(thing)
            return hashlib.sha256(stream.getvalue()).hexdigest()[:20]
        except Exception:  # whatever a user's object raises when it is pickled
            continue
    return uuid.uuid4().hex[:20]


def _bytes(values: Tensor) -> bytes:
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


class _Pickler(pickle.Pickler):
    """Writes what is hashed: tensors by value whatever their strides, a user's code by its source, what is installed by its name."""

    def __init__(self, stream: io.BytesIO, fast: bool) -> None:
        super().__init__(stream, protocol=5)
        self.fast = fast
        self.open: set[int] = set()

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, Tensor):
            return tuple, ((str(thing.dtype), tuple(thing.shape), _bytes(thing) if thing.layout == torch.strided else thing.to_dense()),)
        if isinstance(thing, types.ModuleType):
            return str, (thing.__name__,)
        if thing is str or thing is tuple:  # what the others are written with
            return NotImplemented
        if isinstance(thing, (type, types.FunctionType)):
            if _is_installed(thing) and "<" not in thing.__qualname__:
                return str, (f"{thing.__module__}.{thing.__qualname__}",)
            if id(thing) in self.open:  # it refers to itself
                return str, (thing.__qualname__,)
            self.open.add(id(thing))
            return tuple, (_code_of(thing),)
        if isinstance(thing, nn.Module):
            kept = {name: value for name, value in vars(thing).items() if name not in PASSING and "_hooks" not in name}
            kept["_non_persistent_buffers_set"] = sorted(kept.get("_non_persistent_buffers_set", ()))
            return tuple, ((type(thing), *((name, kept[name]) for name in sorted(kept))),)
        return NotImplemented


def _is_installed(thing: Any) -> bool:
    file = getattr(sys.modules.get(thing.__module__ or ""), "__file__", None)
    if file is None:  # built in, or the main program of a kernel
        return thing.__module__ != "__main__"
    return file.startswith(LIBRARIES)


def _code_of(thing: Any) -> tuple:
    """Source, or bytecode where there is no source, and for a function the values that it refers to."""
    try:
        source: object = inspect.getsource(thing)
    except (OSError, TypeError):
        source = _bytecode(thing.__code__) if isinstance(thing, types.FunctionType) else _members(thing)
    if not isinstance(thing, types.FunctionType):
        return thing.__qualname__, source, [base for base in thing.__bases__ if base is not object]
    used = inspect.getclosurevars(thing)
    values = sorted({**used.globals, **used.nonlocals}.items())
    return thing.__qualname__, source, thing.__defaults__, thing.__kwdefaults__, values


def _members(thing: type) -> list:
    kinds = (types.FunctionType, int, float, str, tuple)
    return [(name, value) for name, value in sorted(vars(thing).items()) if isinstance(value, kinds) and name != "__firstlineno__"]


def _bytecode(code: types.CodeType) -> tuple:
    constants = tuple(
        _bytecode(value) if isinstance(value, types.CodeType) else sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)
        for value in code.co_consts
    )
    return code.co_code, code.co_names, constants


def digest(content: object) -> str:
    """Return a hash of plain data (dicts in any order, lists, tuples, strings, numbers, None), 20 hexadecimal digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _plain(value: object) -> object:
    if hasattr(value, "model_dump"):
        return value.model_dump()
    raise TypeError(f"cannot address content by a {type(value).__name__}: {value!r}")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute numbers."""
    found = {"python": platform.python_version()}
    for package in ("idsds", "torch", "torchvision", "captum", "torchcam", "numpy", "scipy", "pandas"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
