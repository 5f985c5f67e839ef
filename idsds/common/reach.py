"""A hash of everything that a user's net, method or setting can reach: the rule that decides whether numbers are reused.

The rule: two objects have the same hash only if all of the following agree:

- for every function reached, its code as loaded, with its defaults, closure, attributes, and the globals and module attributes
  that its code names; for every class, all its members, its bases and its metaclass; for an object, all its attributes;
- the source text of each of the user's modules reached, and of the user's modules that these import (the main program, including a
  notebook's cells, is followed function by function instead, so that unrelated new cells or lines change nothing);
- tensors and arrays by content, hooks, plain values by value;
- installed packages by name and version, this package's own code by its source, and a user's function that replaces one of a library
  by its code.

If something cannot be determined, the hash is random: for objects of C code that cannot be pickled, generators, open files, locks, and
code whose result depends on more than its arguments: it opens files, reads the environment or the clock, or imports by a computed name.
Constructors may do so, since their result is visible in the object. Records with a random hash are computed again and never reused.
"""

from __future__ import annotations

import builtins
import collections
import contextlib
import enum
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import logging
import pathlib
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from idsds.common.bytecode import CONTAINERS, content_of, globals_of, holds_more, imports_of, slots_of
from idsds.common.origin import BUILT_IN, Unknown, home_of, imported_by, is_installed, is_patch, is_users, text_of, version_of
from idsds.common.purity import IMPURE, check, check_attributes, is_reader

ATOMS = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented), range, slice)
ATOMS += (torch.dtype, torch.device, torch.layout, torch.memory_format)
# Members of a class that do not affect what it computes; annotations are part of the module's text.
UNTOLD = {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__annotate__", "__annotate_func__"}
UNTOLD |= {"__annotations_cache__", "_abc_impl", "__firstlineno__", "__static_attributes__", "__abstractmethods__"}
UNTOLD |= {"__orig_bases__", "__parameters__"}
# Members of a module that the import system sets.
IMPORTED = {"__builtins__", "__loader__", "__spec__", "__cached__", "__file__", "__path__", "__doc__", "__warningregistry__"}


def digest_of(thing: object, *, judged: bool = False) -> str:
    """Return a hash of an object and everything that it reaches, 20 hexadecimal digits.

    Args:
        judged: whether the net is put into eval mode before it is used, so that its modes do not matter.

    Raises:
        Unknown: saying what could not be determined.
    """
    walk = _Walk(thing if judged and isinstance(thing, nn.Module) else None)
    try:
        return walk.run(thing)
    except Unknown:
        raise
    except Exception as error:  # anything that a user's object raises on inspection
        raise Unknown(f"{type(error).__name__}: {error}") from error


class _Walk:
    """A breadth-first walk over objects: each is written once, and referred to by its number afterwards."""

    def __init__(self, judged: nn.Module | None) -> None:
        self.numbers: dict[tuple[int, bool, bool], int] = {}
        self.waiting: collections.deque[tuple[Any, bool, bool]] = collections.deque()
        self.kept: list[Any] = []  # references, so that Python reuses no id
        self.texts: set[str] = set()
        self.lenient = False
        self.moded: set[int] = set()
        if judged is not None:
            nets = list(judged.modules())
            if all(type(net).train is nn.Module.train and type(net).eval is nn.Module.eval for net in nets):
                self.moded = {id(net) for net in nets}

    def run(self, thing: Any) -> str:
        hasher = hashlib.sha256(self._write(thing))
        while self.waiting:
            node, self.lenient, as_type = self.waiting.popleft()
            content = self._class(node, as_type) if isinstance(node, type) else self._content(node)
            hasher.update(b"\0node" + b"\0".join(self._write(part) for part in content))
        for name in sorted(self._all_texts()):
            hasher.update(f"\0text {name} ".encode() + text_of(name))
        return hasher.hexdigest()[:20]

    # ---- how a thing is written where it is met: atoms and tuples in place, all else by its number

    def _write(self, thing: Any) -> bytes:
        kind = type(thing)
        if kind is _Lenient:
            return self._refer(thing.function, lenient=True)
        if kind is _Type:
            return self._refer(thing.kind, as_type=True)
        if kind in ATOMS:
            return _framed(kind.__name__, repr(thing).encode("utf-8", "surrogatepass"))
        if kind is tuple or kind is torch.Size:
            return _framed("tuple", *map(self._write, thing))
        if kind in (set, frozenset):
            return _framed("set", *self._unordered(thing))
        if kind is types.CodeType:
            return _framed("code", *map(self._write, content_of(thing)))
        if isinstance(thing, (type, types.FunctionType, types.ModuleType, *BUILT_IN)):
            self._check(thing)
        return self._refer(thing)

    def _refer(self, thing: Any, lenient: bool | None = None, as_type: bool = False) -> bytes:
        lenient = (self.lenient if lenient is None else lenient) and not isinstance(thing, (Tensor, np.ndarray))
        key = id(thing), lenient, as_type
        if key not in self.numbers:
            self.numbers[key] = len(self.numbers)
            self.kept.append(thing)
            self.waiting.append((thing, lenient, as_type))
        return f"#{self.numbers[key]}".encode()

    def _unordered(self, things: Any) -> list[bytes]:
        """Return the elements in an order that does not depend on the process: plain values sorted, then objects by name."""
        plain = [thing for thing in things if _is_plain(thing)]
        others = [thing for thing in things if not _is_plain(thing)]
        names = [f"{getattr(each, '__module__', '')}.{getattr(each, '__qualname__', '')}" for each in others]
        if len(set(names)) < len(others) or any(name.endswith(".") for name in names):
            raise Unknown("a set of objects has no order")
        return sorted(map(self._write, plain)) + [self._write(thing) for _, thing in sorted(zip(names, others, strict=True))]

    # ---- what an object consists of

    def _content(self, thing: Any) -> tuple:
        for kinds, content in self.KNOWN:
            if isinstance(thing, kinds):
                return content(self, thing)
        return self._object(thing)

    def _function(self, thing: types.FunctionType) -> tuple:
        home = thing.__globals__.get("__name__", "")
        cells = [_cell(cell) for cell in thing.__closure__ or ()]
        shape = ("function", home, thing.__qualname__)
        if not is_users(home):
            if _at(home, thing.__qualname__) is thing:
                return (*shape, version_of(home))
            return (*shape, version_of(home), thing.__code__, thing.__defaults__, thing.__kwdefaults__, cells, vars(thing))
        self.texts.add(home)
        used = [(name, *self._used(thing, name, chain)) for name, chain in sorted(set(globals_of(thing.__code__)))]
        used += [(name, *self._imported(thing, name, *how)) for name, *how in sorted(set(imports_of(thing.__code__)), key=repr)]
        if not self.lenient:
            check_attributes(thing)
        return (*shape, thing.__code__, thing.__defaults__, thing.__kwdefaults__, cells, vars(thing), used)

    def _used(self, function: types.FunctionType, name: str, chain: tuple[str, ...]) -> tuple:
        """Resolve a global name and the chain of attributes that follow it."""
        if name in function.__globals__:
            value = function.__globals__[name]
        elif hasattr(builtins, name):
            if name in IMPURE and not self.lenient:
                raise Unknown(f"{function.__qualname__} uses {name}()")
            value = getattr(builtins, name)
        else:
            return ("undefined",)
        path = name
        for attribute in chain:
            if not isinstance(value, types.ModuleType):
                break
            if not self.lenient and not is_users(value.__name__) and is_reader(attribute):
                raise Unknown(f"{function.__qualname__} uses {path}.{attribute}")
            if not hasattr(value, attribute):
                return path, attribute, "undefined"
            value, path = getattr(value, attribute), f"{path}.{attribute}"
        try:
            self._check(value)
        except Unknown:
            raise Unknown(f"{function.__qualname__} uses {path}") from None
        return path, value

    def _imported(self, function: types.FunctionType, name: str, level: int, names: tuple[str, ...] | None) -> tuple:
        """Resolve an import within a function, by executing it as the function would."""
        package = function.__globals__.get("__package__") or ""
        full = importlib.util.resolve_name("." * level + name, package) if level else name
        try:
            module = importlib.import_module(full)
        except ImportError:
            return (full, "absent")
        if not is_users(full):
            taken = [getattr(module, each, None) for each in names or ()]
            for each in taken if names else [module]:
                self._check(each)
            return full, version_of(full), [] if names is None else taken
        self.texts.add(full)
        if names is None or "*" in names:
            return full, module, sys.modules[full.split(".")[0]]
        parts = []
        for each in names:
            if not hasattr(module, each):
                try:
                    importlib.import_module(f"{full}.{each}")
                except ImportError:
                    continue
            parts.append((each, getattr(module, each)))
        return full, parts

    def _check(self, thing: Any) -> None:
        if not self.lenient:
            check(thing)

    def _class(self, thing: type, as_type: bool) -> tuple:
        home = home_of(thing)
        shape = ("class", home, thing.__qualname__)
        if not is_users(home) and _at(home, thing.__qualname__) is thing:
            patches = [(name, value) for name, value in sorted(vars(thing).items()) if is_patch(value)]
            bases = [_Type(base) for base in thing.__bases__ if base is not object]
            return (*shape, version_of(home), patches, bases)
        if is_users(home):
            self.texts.add(home)
        members = []
        for name, value in sorted(vars(thing).items()):
            if name in UNTOLD or isinstance(value, (types.GetSetDescriptorType, types.MemberDescriptorType)):
                continue
            made = as_type and name in ("__init__", "__new__", "__post_init__") and isinstance(value, types.FunctionType)
            members.append((name, _Lenient(value) if made else value))
        bases = [_Type(base) if as_type else base for base in thing.__bases__ if base is not object]
        return (*shape, _Type(type(thing)), bases, members)

    def _module(self, thing: types.ModuleType) -> tuple:
        name = thing.__name__
        if not is_users(name):
            return ("module", name, version_of(name))
        if name == "__main__":
            raise Unknown("the main program is used as a whole")
        self.texts.add(name)
        members = [(key, value) for key, value in vars(thing).items() if key not in IMPORTED]
        return ("module", name, [pair for pair in members if not is_installed(pair[1])])

    def _tensor(self, thing: Tensor) -> tuple:
        if type(thing) not in (Tensor, nn.Parameter, nn.Buffer):
            raise Unknown(f"a tensor is a {type(thing).__name__}")
        if thing.layout != torch.strided:
            thing = thing.to_dense()
        values = thing.detach().resolve_conj().resolve_neg().cpu().contiguous()
        hooks = list((thing._backward_hooks or {}).values())
        content = hashlib.sha256(values.flatten().view(torch.uint8).numpy()).hexdigest()
        return ("tensor", type(thing).__name__, thing.dtype, tuple(thing.shape), thing.requires_grad, content, hooks, vars(thing))

    def _array(self, thing: np.ndarray) -> tuple:
        if type(thing) not in (np.ndarray, np.memmap):
            raise Unknown(f"an array is a {type(thing).__name__}")
        if thing.dtype.hasobject:
            return ("array", str(thing.dtype), thing.shape, thing.tolist())
        return ("array", str(thing.dtype), thing.shape, hashlib.sha256(np.ascontiguousarray(thing).view(np.uint8)).hexdigest())

    def _net(self, thing: nn.Module) -> tuple:
        state = dict(vars(thing))
        if id(thing) in self.moded and isinstance(state.get("training"), bool):
            del state["training"]
        hooks = {name: each for name, each in state.items() if "_hooks" in name and isinstance(each, dict)}
        hooks = {name: each for name, each in hooks.items() if all(type(key) is int for key in each)}
        # Hooks are numbered in the order of the process's registrations: only their relative order matters.
        numbers = {number: place for place, number in enumerate(sorted({key for each in hooks.values() for key in each}))}
        state |= {name: [(numbers[key], value) for key, value in each.items()] for name, each in hooks.items()}
        return ("object", _Type(type(thing)), sorted(state.items()))

    def _object(self, thing: Any) -> tuple:
        kind = type(thing)
        base = next((each for each in CONTAINERS if isinstance(thing, each)), object)
        if holds_more(kind, base):
            return self._reduced(thing)
        state = [(name, getattr(thing, name)) for each in kind.__mro__ for name in slots_of(each) if hasattr(thing, name)]
        with contextlib.suppress(AttributeError):
            state += list(object.__getattribute__(thing, "__dict__").items())
        items: Any = None
        if base is dict:
            items = tuple(dict.items(thing))
        elif base in (list, tuple):
            items = tuple(base.__iter__(thing))
        elif base in (set, frozenset):
            items = frozenset(base.__iter__(thing))
        elif base is not object:
            items = base.__repr__(thing)
        return ("object", _Type(kind), tuple(state), items)

    def _reduced(self, thing: Any) -> tuple:
        kind = type(thing)
        for name in ("__reduce_ex__", "__reduce__", "__getstate__"):
            if isinstance(reducer := getattr(kind, name, None), types.FunctionType) and is_users(reducer.__globals__.get("__name__")):
                raise Unknown(f"the content of a {kind.__name__} cannot be seen")
        try:
            reduced = thing.__reduce_ex__(4)
        except Exception as error:
            raise Unknown(f"a {kind.__name__} cannot be inspected: {error}") from error
        if isinstance(reduced, str):
            return ("object", _Type(kind), reduced)
        content, rest = reduced[:3], reduced[3:5]  # the rest are iterators
        return ("reduced", _Type(kind), *content, *(None if each is None else list(each) for each in rest))

    def _cached(self, thing: Any) -> tuple:
        if thing.cache_info().currsize and is_users(getattr(thing.__wrapped__, "__module__", None)):
            raise Unknown(f"{thing.__wrapped__.__qualname__} remembers results")
        return ("cached", thing.__wrapped__)

    def _built_in(self, thing: Any) -> tuple:
        owner = getattr(thing, "__objclass__", None) or getattr(thing, "__self__", None)
        if isinstance(owner, (types.ModuleType, type)) or owner is None:
            where = getattr(owner, "__name__", "") if owner is not None else ""
            return ("built in", where, getattr(thing, "__module__", None) or "", thing.__name__)
        return ("built in", thing.__name__, owner)

    KNOWN: tuple[tuple[Any, Callable[[_Walk, Any], tuple]], ...] = (
        (Tensor, _tensor),
        (np.ndarray, _array),
        (nn.Module, _net),
        (types.FunctionType, _function),
        (types.ModuleType, _module),
        (types.MethodType, lambda self, thing: ("bound", thing.__func__, thing.__self__)),
        (functools.partial, lambda self, thing: ("partial", thing.func, thing.args, thing.keywords, vars(thing))),
        (type(functools.lru_cache(int)), _cached),
        ((classmethod, staticmethod), lambda self, thing: (type(thing).__name__, thing.__func__)),
        (property, lambda self, thing: ("property", thing.fget, thing.fset, thing.fdel)),
        (BUILT_IN, _built_in),
        (enum.Enum, lambda self, thing: ("enum", _Type(type(thing)), thing.name, thing.value)),
        (torch.Generator, lambda self, thing: ("generator", thing.device, thing.get_state())),
        (types.MappingProxyType, lambda self, thing: ("mapping", dict(thing))),
        (collections.OrderedDict, lambda self, thing: ("ordered", _Type(type(thing)), list(thing.items()), vars(thing))),
        (weakref.ref, lambda self, thing: ("weak", thing())),
        (RemovableHandle, lambda self, thing: ("handle",)),
        (logging.Logger, lambda self, thing: ("logger",)),
        (pathlib.PurePath, lambda self, thing: ("path", str(thing))),
    )

    # ---- the text of modules

    def _all_texts(self) -> set[str]:
        """Return the user's modules reached, and the user's modules that their sources import."""
        names: set[str] = set()
        waiting = list(self.texts - {"__main__"})
        while waiting:
            name = waiting.pop()
            if name in names or name not in sys.modules or not is_users(name) or name == "__main__":
                continue
            names.add(name)
            waiting += imported_by(name)
        return names


class _Lenient:
    """A constructor that has already run, so that it may have read external data."""

    def __init__(self, function: types.FunctionType) -> None:
        self.function = function


class _Type:
    """The class of an existing object, whose constructor has already run."""

    def __init__(self, kind: type) -> None:
        self.kind = kind


def _framed(kind: str, *parts: bytes) -> bytes:
    return kind.encode() + b"(" + b",".join(str(len(part)).encode() + b":" + part for part in parts) + b")"


def _is_plain(thing: Any) -> bool:
    if type(thing) in (tuple, frozenset):
        return all(map(_is_plain, thing))
    return type(thing) in ATOMS


def _cell(cell: types.CellType) -> Any:
    try:
        return ("cell", cell.cell_contents)
    except ValueError:
        return ("empty cell",)


def _at(module: str, path: str) -> Any:
    """Return the object at a dotted path in a module, or None."""
    value: Any = sys.modules.get(module)
    for name in path.split("."):
        value = getattr(value, name, None)
    return value
