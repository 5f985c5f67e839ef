"""The origin of an object (the user's code, a library or this package), and the version of that code."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import site
import sys
import sysconfig
import types
from typing import Any

# Objects defined by C code, identified by module and name.
BUILT_IN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType)
BUILT_IN += (types.MethodWrapperType, types.GetSetDescriptorType, types.MemberDescriptorType)


class Unknown(Exception):  # noqa: N818
    """It cannot be determined what an object computes; the message says why."""


@functools.cache
def _libraries() -> tuple[str, ...]:
    folders = [sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({f"{path}{os.sep}" for folder in folders for path in (folder, os.path.realpath(folder))})


def is_users(module: str | None) -> bool:
    """Return whether a module is the user's: not installed, not of the standard library, and not of this package."""
    top = (module or "__main__").split(".")[0]
    if top == "idsds":
        return False
    if top == "__main__":
        return True
    found = sys.modules.get(top)
    places = [getattr(found, "__file__", None), *list(getattr(found, "__path__", None) or [])]
    places = [place for place in places if isinstance(place, str)]
    if not places:
        return top not in sys.stdlib_module_names
    return not any(os.path.abspath(place).startswith(_libraries()) for place in places)


@functools.cache
def version_of(module: str) -> str:
    """Return what identifies the version of an installed module."""
    top = module.split(".")[0]
    if top == "idsds":
        from idsds.common.hashing import sources

        return sources(module)
    if top in sys.stdlib_module_names:
        return ""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(top)
    if names := importlib.metadata.packages_distributions().get(top):  # slow
        return importlib.metadata.version(names[0])
    version = getattr(sys.modules.get(top), "__version__", None)
    if not isinstance(version, str):
        raise Unknown(f"the version of {top!r} is unknown")
    return version


def home_of(kind: type) -> str:
    """Return the name of the module in which a class is defined."""
    home = kind.__module__
    return home if isinstance(home, str) else repr(kind).split("'")[1].rpartition(".")[0]  # Cython hides it behind a property


def is_patch(value: Any) -> bool:
    """Return whether a value is a function of the user's."""
    # type(): some libraries warn where isinstance() asks a deprecated member for its class
    return type(value) is types.FunctionType and is_users(value.__globals__.get("__name__"))


def is_installed(value: Any) -> bool:
    """Return whether a module, class or function comes from an installed package."""
    if isinstance(value, types.ModuleType):
        return not is_users(value.__name__)
    if isinstance(value, (type, types.FunctionType, *BUILT_IN)):
        return not is_users(getattr(value, "__module__", None)) and not is_patch(value)
    return False


def text_of(module: str) -> bytes:
    """Return the hash of a module's source, empty for one without a file."""
    file = getattr(sys.modules[module], "__file__", None)
    if not file or not os.path.isfile(file):
        return b""  # a module created at run time is followed function by function
    with open(file, "rb") as stream:
        return hashlib.sha256(stream.read()).digest()


def imported_by(module: str) -> list[str]:
    """Return the user's loaded modules that a module's source imports, anywhere in it."""
    found = sys.modules[module]
    file = getattr(found, "__file__", None)
    if not file or not file.endswith(".py") or not os.path.isfile(file):
        return []
    with open(file, "rb") as stream:
        tree = ast.parse(stream.read())
    package = getattr(found, "__package__", "") or ""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            name = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            names += [name, *(f"{name}.{alias.name}" for alias in node.names)]
    parts = {".".join(name.split(".")[:count]) for name in names for count in range(1, len(name.split(".")) + 1)}
    return [name for name in sorted(parts) if isinstance(sys.modules.get(name), types.ModuleType) and is_users(name)]
