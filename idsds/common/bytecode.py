"""Facts from compiled code: its constants, the globals, imports and attributes that it names, and what only C code can see."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator
from typing import Any

GLOBAL = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}


def content_of(code: types.CodeType) -> tuple:
    """Return everything that determines what a code object computes; nested code is among the constants."""
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return code.co_code, code.co_exceptiontable, *counts, *names, code.co_consts


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield a code object and all code objects nested in it."""
    yield code
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            yield from codes(value)


def globals_of(code: types.CodeType) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the global names that code uses, each with the attributes that directly follow: ``(np, (linalg, norm))``."""
    for each in codes(code):
        chain: list[str] | None = None
        for step in dis.get_instructions(each):
            if step.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain is not None:
                chain.append(step.argval)
            elif step.opname != "EXTENDED_ARG":
                if chain is not None:
                    yield chain[0], tuple(chain[1:])
                chain = [step.argval] if step.opname in GLOBAL else None


def imports_of(code: types.CodeType) -> Iterator[tuple[str, int, tuple[str, ...] | None]]:
    """Yield the imports within code: name, level and the names imported from the module."""
    for each in codes(code):
        last: list[Any] = [0, None]
        for step in dis.get_instructions(each):
            if step.opname == "IMPORT_NAME":
                yield step.argval, last[0], last[1]
            elif step.opname != "EXTENDED_ARG":
                last = [last[1], step.argval]


def attributes_of(code: types.CodeType) -> Iterator[str]:
    """Yield the names of all attributes that code loads."""
    for each in codes(code):
        for step in dis.get_instructions(each):
            if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                yield step.argval


CONTAINERS = (dict, list, tuple, set, frozenset, int, float, complex, str, bytes)


def slots_of(kind: type) -> list[str]:
    """Return the names of the attributes that a class keeps in slots."""
    slots = vars(kind).get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    private = f"_{kind.__name__.lstrip('_')}"
    names = [f"{private}{name}" if name.startswith("__") and not name.endswith("__") else name for name in names]
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def holds_more(kind: type, base: type) -> bool:
    """Return whether an object has memory beyond its attributes and those of a plain container, which only C code can see."""
    if kind is base:
        return False
    size = base.__basicsize__ + sum(8 for offset in (kind.__dictoffset__, kind.__weakrefoffset__) if offset > 0)
    size += 8 * sum(len(slots_of(each)) for each in kind.__mro__)
    return kind.__basicsize__ > size or kind.__itemsize__ != base.__itemsize__
