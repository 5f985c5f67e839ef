"""Which net a user's method explains, as far as its object shows: a method bound to one net says nothing about another.

An object of captum, torchcam or pytorch-grad-cam holds its net. Nets are looked for in everything that a callable holds: partials, bound
methods, attributes, containers, closures, defaults and the globals that a function uses.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from captum.attr import Attribution
from torch import nn

from idsds.common.bytecode import codes
from idsds.methods.base import Method

DEPTH = 8
LIBRARIES = ("torch.", "torchvision.", "numpy.", "captum.", "torchcam.", "pytorch_grad_cam.", "idsds.")


def library_of(thing: object) -> str:
    """Return ``captum``, ``torchcam`` or ``pytorch-grad-cam`` for an object that explains a net, else ""."""
    if isinstance(thing, Attribution):
        return "captum"
    homes = [base.__module__ for base in type(thing).__mro__]  # no import: who passes an object has imported its library
    if any(home.startswith("torchcam.") for home in homes):
        return "torchcam"
    return "pytorch-grad-cam" if "pytorch_grad_cam.base_cam" in homes else ""


def bound_elsewhere(thing: Any, net: nn.Module, others: Iterable[nn.Module] = ()) -> str | None:
    """Return why a method says nothing about ``net``, because it explains another net; None if it may explain this one.

    Args:
        thing: the user's method.
        net: the net being evaluated.
        others: the other nets being evaluated. A callable that holds one of them but not ``net`` explains that one. Any other net that it
            holds is ignored, unless a library's object explains it.
    """
    if isinstance(thing, Method):
        return None if thing.model is net else f"it was made for another net, a {type(thing.model).__name__}"
    holders = list(_reachable(thing))
    for holder in holders:
        library = library_of(holder)
        if library and (held := list(_nets(holder))) and not any(_is_of(one, net) for one in held):
            return f"its {library} object, {type(holder).__name__}, explains another net, a {type(held[0]).__name__}"
    held = [holder for holder in holders if isinstance(holder, nn.Module)]
    judged = [other for other in others if other is not net and any(_is_of(one, other) for one in held)]
    if judged and not any(_is_of(one, net) for one in held):
        return f"it holds another evaluated net, a {type(judged[0]).__name__}, and not this one"
    return None


def other_net(thing: Any, net: nn.Module) -> nn.Module | None:
    """Return a net that a callable may explain instead of ``net``, because it holds that net and not ``net``; None if there is none."""
    held = [] if isinstance(thing, Method) else [holder for holder in _reachable(thing) if isinstance(holder, nn.Module)]
    return None if not held or any(_is_of(one, net) for one in held) else held[0]


def has_rules(thing: Any) -> bool:
    """Return whether a callable uses a captum object with layer rules (DeepLIFT, LRP), which end at the logits."""
    return any(isinstance(one, Attribution) and re.search("DeepLift|LRP", type(one).__name__) for one in _reachable(thing))


def _nets(holder: Any) -> Iterator[nn.Module]:
    """Yield the nets that a library's object explains."""
    if not isinstance(holder, Attribution):
        yield holder.model
    elif isinstance(function := getattr(holder, "forward_func", None), nn.Module):
        yield function
    else:
        yield from (found for found in _reachable(function) if isinstance(found, nn.Module))


def _is_of(held: nn.Module, net: nn.Module) -> bool:
    """Return whether one net is the other or part of it. A copy does not count: it may differ in ways that its weights do not show."""
    return any(module is held for module in net.modules()) or any(module is net for module in held.modules())


def _reachable(thing: Any) -> Iterator[Any]:
    """Yield the outermost nets and library objects that ``thing`` holds."""
    waiting: list[tuple[Any, int]] = [(thing, 0)]
    seen: set[int] = set()
    while waiting:
        one, depth = waiting.pop()
        if id(one) in seen or depth > DEPTH:
            continue
        seen.add(id(one))
        if isinstance(one, (nn.Module, Method)) or library_of(one):
            yield one
        else:
            waiting += [(part, depth + 1) for part in _parts(one)]


def _parts(one: Any) -> list[Any]:
    if isinstance(one, functools.partial):
        return [one.func, *one.args, *one.keywords.values()]
    if isinstance(one, types.MethodType):
        return [one.__self__, one.__func__]
    if isinstance(one, types.FunctionType):
        return _of_function(one)
    if isinstance(one, Mapping):
        return list(one.values()) if len(one) < 1000 else []
    if isinstance(one, (list, tuple, set)):
        return list(one)[:1000]
    if isinstance(one, (str, bytes, int, float, type, types.ModuleType, torch.Tensor)) or _installed(type(one)):
        return []
    wrapped = [one.__wrapped__] if isinstance(getattr(one, "__wrapped__", None), Callable) else []  # type: ignore[arg-type]
    call = getattr(type(one), "__call__", None)  # noqa: B004
    return [*getattr(one, "__dict__", {}).values(), *wrapped, *([call] if isinstance(call, types.FunctionType) else [])]


def _of_function(function: types.FunctionType) -> list[Any]:
    """Return the values of the function's closure and defaults and of the globals that it uses."""
    if _installed(function):
        return []
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    named = {name for code in codes(function.__code__) for name in code.co_names}
    used = [value for name, value in function.__globals__.items() if name in named and not isinstance(value, type)]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [*cells, *defaults, *used, *([inspect.unwrap(function)] if hasattr(function, "__wrapped__") else [])]


def _installed(thing: Any) -> bool:
    return f"{getattr(thing, '__module__', '') or ''}.".startswith(LIBRARIES)
