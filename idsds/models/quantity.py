"""The quantity that is explained and evaluated: a logit, a probability, or the contrast of two classes.

A quantity maps each image's logits (K,) to K values. A hook on the net returns it in place of the logits, so that methods, protocols and
libraries run unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from idsds.common.registry import check_name

Kind = Literal["logit", "probability", "contrast"]
_SUSPENDED: ContextVar[bool] = ContextVar("suspended", default=False)


@dataclass(frozen=True)
class Quantity:
    """The quantity to explain for class t, computed from the logits z.

    Args:
        kind: ``logit``, z_t; ``probability``, softmax(z)_t; ``contrast``, z_t minus another logit.
        against: the other class of a contrast; None for the highest of the other logits, chosen anew for every image that the net sees.
    """

    kind: Kind
    against: int | None = None

    def __str__(self) -> str:
        if self.kind != "contrast":
            return self.kind
        return "contrast with the runner-up" if self.against is None else f"contrast with class {self.against}"

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the quantity for each class, (B, K) -> (B, K)."""
        if self.kind == "logit":
            return logits
        if self.kind == "probability":
            return logits.softmax(dim=1)
        if self.against is not None:
            return logits - logits[:, self.against, None]
        highest, order = logits.topk(2, dim=1)
        is_first = torch.arange(logits.shape[1], device=logits.device) == order[:, :1]  # (B, K)
        return logits - torch.where(is_first, highest[:, 1:], highest[:, :1])


def as_quantity(given: Any) -> Quantity:
    """Parse a quantity given by name or as ``("contrast", class)``.

    Raises:
        UnknownNameError: for an unknown name, with the nearest match.
        TypeError, ValueError: for anything else, or a class that is not a non-negative integer.
    """
    if isinstance(given, Quantity):
        return given
    kind, against = (given[0], given[1]) if isinstance(given, (tuple, list)) and len(given) == 2 else (given, None)
    if not isinstance(kind, str):
        raise TypeError(f"quantity must be one of {', '.join(get_args(Kind))}, or ('contrast', class), not {given!r}")
    check_name("quantity", kind, get_args(Kind))
    if against is not None and kind != "contrast":
        raise ValueError(f"quantity={given!r}: only a contrast takes another class")
    if against is not None and (isinstance(against, bool) or not isinstance(against, int) or against < 0):
        raise ValueError(f"quantity={given!r}: the other class must be a whole number of 0 or more, not {against!r}")
    return Quantity(kind, against)  # type: ignore[arg-type]


@contextmanager
def explaining(model: nn.Module, quantity: Quantity | None) -> Iterator[None]:
    """Make the net return the quantity in place of logits inside the block; None changes nothing."""
    if quantity is None or quantity.kind == "logit":
        yield
        return

    def read(_module: nn.Module, _inputs: object, logits: Tensor) -> Tensor | None:
        return None if _SUSPENDED.get() else quantity(logits)

    with model.register_forward_hook(read):
        yield


@contextmanager
def plain_logits() -> Iterator[None]:
    """Make nets return their logits inside the block, for code that needs logits whatever is explained."""
    token = _SUSPENDED.set(True)
    try:
        yield
    finally:
        _SUSPENDED.reset(token)
