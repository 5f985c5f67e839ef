"""What changes numbers without being an argument: torch's global switches, and functions put in the place of a library's."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from idsds.common.origin import is_users, package_of

# Packages in which a function of the user's may have been put in place of their own.
PATCHED = {"torch", "torchvision", "timm", "captum", "torchcam", "numpy", "bcos", "idsds"}


def switches() -> tuple:
    """What changes numbers without being an argument: torch's global switches, hooks on all modules, functions put in a library's place."""
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
    """Functions of the user's that stand where a library had one of its own: (module, name, function)."""
    # Some 50,000 functions come from a few packages: each package is asked once, and anew in the next call.
    users = functools.cache(is_users)

    def is_patch(value: Any) -> bool:
        return type(value) is types.FunctionType and users(package_of(value))

    for name, module in sorted(sys.modules.items()):
        if name.split(".")[0] not in PATCHED or not isinstance(module, types.ModuleType):
            continue
        for key, value in list(vars(module).items()):
            if is_patch(value):
                yield name, key, value
            elif issubclass(type(value), type) and value.__module__ == name:
                yield from ((name, f"{key}.{inner}", member) for inner, member in list(vars(value).items()) if is_patch(member))
