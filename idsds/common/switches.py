"""Global state that changes numbers: torch's switches, and functions of libraries that a user has replaced."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from idsds.common.origin import is_users

# Packages whose functions a user may have replaced.
PATCHED = {"torch", "torchvision", "timm", "captum", "torchcam", "numpy", "bcos", "idsds"}


def switches() -> tuple:
    """Return the global state that changes numbers: torch's switches, global module hooks, and replaced functions of libraries."""
    hooks = [value for name, value in sorted(vars(nn.modules.module).items()) if name.startswith("_global_") and isinstance(value, dict)]
    states = (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.enabled,
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.allow_tf32,
        torch.backends.mkldnn.enabled,
        [torch.is_autocast_enabled(device) for device in ("cpu", "cuda")],
        [type(mode) for mode in torch.overrides._get_current_function_mode_stack()],
    )
    return states, [list(each.values()) for each in hooks], list(patches())


def patches() -> Iterator[tuple[str, str, Any]]:
    """Yield the user's functions that replace those of a library: (module, name, function)."""
    # Of 170,000 members, 50,000 functions come from a few hundred modules: each module is asked once, and anew in the next call.
    users = functools.cache(is_users)

    def foreign(members: dict[str, Any]) -> list[tuple[str, Any]]:
        functions = [(key, value) for key, value in members.items() if type(value) is types.FunctionType]
        return [(key, value) for key, value in functions if users(value.__globals__.get("__name__"))]

    for name, module in sorted(sys.modules.items()):
        if name.split(".")[0] not in PATCHED or not isinstance(module, types.ModuleType):
            continue
        members = dict(vars(module))
        yield from ((name, key, value) for key, value in foreign(members))
        for key, value in members.items():
            if issubclass(type(value), type) and value.__module__ == name:
                yield from ((name, f"{key}.{inner}", member) for inner, member in foreign(dict(vars(value))))
