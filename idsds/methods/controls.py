"""Controls that know nothing of the model. Whatever they score, a method must beat."""

from __future__ import annotations

from torch import Tensor, nn

from idsds.methods.base import Passes, register_method
from idsds.randomness import Draws


@register_method("Random", family="control", passes=Passes(0), source="this package")
def random(model: nn.Module, images: Tensor, targets: Tensor, *, draws: Draws) -> Tensor:
    """Standard normal numbers, keyed by the image's id."""
    return draws.normal(1)[:, 0, :1]
