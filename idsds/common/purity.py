"""Which installed code computes from its arguments alone, and which may read external data: files, the environment, the clock."""

from __future__ import annotations

import sys
import types
from typing import Any

from idsds.common.bytecode import attributes_of, imports_of
from idsds.common.origin import BUILT_IN, Unknown, is_users

# Modules of the standard library whose functions depend only on their arguments.
PURE = """__future__ _abc _bisect _collections _collections_abc _decimal _functools _heapq _operator _pydecimal _struct _warnings
abc array bisect builtins cmath collections contextlib copy copyreg dataclasses decimal enum fractions functools heapq itertools
logging math numbers operator re statistics string struct textwrap types typing warnings weakref""".split()  # noqa: SIM905
# Builtins, and functions of libraries, that depend on more than their arguments.
IMPURE = {"open", "eval", "exec", "compile", "input", "globals", "locals", "vars", "__import__", "breakpoint"}
READERS = {"load", "open", "fromfile", "from_file", "memmap", "loadtxt", "genfromtxt", "imread", "load_file", "safe_open", "hub", "File"}
# Attributes that count as such, whatever object they belong to.
OUTWARD = {"read_text", "read_bytes", "getenv", "environ", "import_module", "imread", "fromfile", "loadtxt", "genfromtxt", "load_file"}
# Libraries whose purpose is to read external data.
ELSEWHERE = {"h5py", "zarr", "lmdb", "requests", "httpx", "urllib3", "fsspec", "boto3", "sqlalchemy", "yaml", "joblib", "datasets"}


def is_reader(name: str) -> bool:
    """Return whether functions of a library by this name read external data."""
    return name in READERS or name.startswith("read_")


def check_attributes(function: types.FunctionType) -> None:
    """Raise Unknown for attributes that read external data; if the function imports modules, also for names such as ``load``."""
    imports = any(True for _ in imports_of(function.__code__))
    if taken := set(attributes_of(function.__code__)) & (OUTWARD | READERS if imports else OUTWARD):
        raise Unknown(f"{function.__qualname__} uses {min(taken)}()")


def check(thing: Any) -> None:
    """Raise Unknown for installed code that may read external data while it runs."""
    home = thing.__name__ if isinstance(thing, types.ModuleType) else getattr(thing, "__module__", None)
    if not isinstance(home, str) or is_users(home):
        return
    top, name = home.split(".")[0], getattr(thing, "__name__", "")
    if isinstance(thing, types.FunctionType) and is_users(thing.__globals__.get("__name__")):
        return
    if top in ELSEWHERE or (top in sys.stdlib_module_names and top not in PURE):
        raise Unknown(f"{home}.{name} may read external data")
    impure = name in IMPURE if top == "builtins" else is_reader(name)
    if impure and isinstance(thing, (types.FunctionType, *BUILT_IN)):
        raise Unknown(f"{home}.{name} may read external data")
