"""Other options of methods than their own, from a params file, checked before any work."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Self, get_args

import torch
from pydantic import model_validator

from idsds.common.numbers import as_whole
from idsds.common.randomness import Draws
from idsds.common.registry import check_name, check_names
from idsds.common.settings import Settings
from idsds.methods.base import METHODS, split_name
from idsds.methods.gradient import path_start
from idsds.models.base import Channels

#: Options without a default that a params file can hold, and what checks them before any work; a layer is checked against each model.
CHECKS: dict[str, Callable[[str, Any], object]] = {
    "channels": lambda where, value: check_name("channels", value, get_args(Channels)),
    "grid": as_whole,
    "start_block": partial(as_whole, least=0),
}


class MethodSettings(Settings):
    """Base of studies whose ``methods`` may run with other options than their own, by name: ``{"IG": {"steps": 25}}``."""

    method_settings: dict[str, dict[str, bool | int | float | str]] = {}

    @model_validator(mode="after")
    def _are_options(self) -> Self:
        check_names("method with settings", self.method_settings, self.methods)  # type: ignore[attr-defined]
        for name, options in self.method_settings.items():
            entry = METHODS[split_name(name)[0]]
            defaults, _ = entry.settings(), entry.settings(**options)
            for option, value in options.items():
                _check_value(f"method_settings.{name}.{option}", value, defaults[option])
        return self

    def with_settings(self, suffix: str = "") -> dict[str, tuple[str, dict[str, Any]] | None]:
        """Return the methods as :func:`idsds.evaluate` takes them, with ``suffix`` at the end of each name."""
        given, names = self.method_settings, self.methods  # type: ignore[attr-defined]
        return {name + suffix: (name + suffix, dict(given[name])) if name in given else None for name in names}


def _check_value(where: str, value: Any, default: Any) -> None:
    """Raise ValueError for a value of another type than the default's, or out of range; a layer is checked against each model later."""
    option = where.rpartition(".")[2]
    layer = option == "layer"
    if isinstance(default, str) and option == "baseline":
        path_start(value, torch.nn.Identity(), Draws(0, where, torch.zeros(1, 1, 1, 1)))  # raises for an unknown name
    elif type(default) is int:
        as_whole(where, value)
    elif isinstance(default, float):
        end = 1 if option == "probability" else math.inf
        if isinstance(value, (bool, str)) or not 0 < value < end:
            raise ValueError(f"{where} must be a number above 0{' and below 1' if end == 1 else ''}, not {value!r}")
    elif default is None and option in CHECKS:
        CHECKS[option](where, value)
    elif default is None and not layer:
        raise ValueError(f"{where} is an array or an object, which a params file cannot hold; not {value!r}")
    elif type(value) is not (str if layer else type(default)):
        raise ValueError(f"{where} must be {'true or false' if isinstance(default, bool) else 'a name'}, not {value!r}")
