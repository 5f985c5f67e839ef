"""Devices and precisions: the allowed names, and the choice of an available device."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import AfterValidator

from idsds.common.registry import check_name
from idsds.common.settings import SettingsError

DEVICES = ("auto", "cpu", "cuda", "mps")
#: The accelerators, the preferred one first.
ACCELERATORS = {"cuda": torch.cuda, "mps": torch.backends.mps}
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def one_of(kind: str, allowed: Any) -> Any:
    """Return the validator of a setting that takes one of the ``allowed`` names."""

    def check(value: str) -> str:
        check_name(kind, value, allowed)
        return value

    return AfterValidator(check)


def _is_available(value: str) -> str:
    check_name("device", value, DEVICES)
    if value in ACCELERATORS and not ACCELERATORS[value].is_available():
        raise ValueError(f"no {value.upper()} device is available here; use 'auto' or 'cpu'")
    return value


Device = Annotated[str, AfterValidator(_is_available)]
Precision = Annotated[str, one_of("precision", PRECISIONS)]


def check_precision(precision: str, device: str) -> None:
    """Raise SettingsError for half precision on a device (``cpu``, ``cuda`` or ``mps``) that does not support it."""
    if precision == "16-mixed" and device != "cuda":
        raise SettingsError(f"precision '16-mixed' needs a CUDA device, not {device!r}; use 'bf16-mixed' or '32-true'")


def chosen_device(device: str = "auto") -> torch.device:
    """Return a device; ``auto`` selects cuda, else mps, else cpu. Raises SettingsError if the device is not available."""
    try:
        _is_available(device)
    except ValueError as error:
        raise SettingsError(f"device: {error}") from error
    if device == "auto":
        device = next((name for name, backend in ACCELERATORS.items() if backend.is_available()), "cpu")
    return torch.device(device)
