"""Numbers that come from numpy and torch, as Python's own."""

from __future__ import annotations

import math
import operator
import os
from typing import Any

import numpy as np
from torch import Tensor


def as_whole(name: str, value: Any, least: int | None = 1) -> int:
    """Return a whole number as an int: an int, a numpy integer, or a zero-dimensional tensor or array that holds one.

    Args:
        least: the smallest that is allowed; None: any.

    Raises:
        ValueError: for anything else, booleans and floats among them, naming the value.
    """
    value, given = plain(value), value
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        whole = operator.index(value)
        if least is None or whole >= least:
            return whole
    bound = "" if least is None else f" of at least {least}"
    raise ValueError(f"{name} must be a whole number{bound}, not {given!r}")


def gigabytes(variable: str, *, zero: bool = False) -> int | None:
    """Return what an environment variable sets in gigabytes, in bytes; None if it is not set.

    Raises ValueError, which names both, for anything but a number above 0 (with ``zero``, of at least 0).
    """
    if not (setting := os.environ.get(variable)):
        return None
    try:
        number = float(setting)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf or (number == 0 and not zero):
        raise ValueError(f"{variable} must be a number of gigabytes {'of at least' if zero else 'above'} 0, not {setting!r}")
    return int(number * 2**30)


def plain(value: Any) -> Any:
    """Return a numpy number, or a zero-dimensional tensor or array, as Python's own number; anything else unchanged."""
    if isinstance(value, np.generic) or (isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0):
        return value.item()
    return value
