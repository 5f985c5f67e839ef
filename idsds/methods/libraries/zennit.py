"""Layer-wise relevance propagation with zennit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from idsds.common.batching import in_batches
from idsds.common.randomness import Draws
from idsds.methods import graphs
from idsds.methods.base import LOGIT_ONLY, Passes
from idsds.methods.libraries.base import LibraryMethod, gradients_needed
from idsds.models.base import describe


def is_activation(kind: type) -> bool:
    """Return whether a layer type is one of torch's activations."""
    return kind.__module__.endswith(".activation")


def has_rule(kind: type) -> bool:
    """Return whether a nonlinear layer type has a rule."""
    activation = is_activation(kind) and not issubclass(kind, (nn.MultiheadAttention, nn.Softmax, nn.GLU))
    return activation or "MaxPool" in kind.__name__


class Zennit(LibraryMethod):
    """Layer-wise relevance propagation of the target logit by a zennit composite.

    BatchNorms are merged into the preceding convolution, and sums of branches distribute relevance in proportion, as zennit's canonizers
    do for torchvision's ResNets, but here for any net that torch.fx can trace.
    """

    library = "zennit"
    GIVEN = ("layer_map", "first_map", "canonizers")
    GRADIENTS = ("DeconvNet", "GuidedBackprop")
    RULES = (
        *("EpsilonPlus", "EpsilonPlusFlat", "EpsilonGammaBox", "EpsilonAlpha2Beta1", "EpsilonAlpha2Beta1Flat"),
        *("ExcitationBackprop", "BetaSmooth"),
    )
    NAMES = (*RULES, *GRADIENTS)
    OF_LOGIT = dict.fromkeys(RULES, LOGIT_ONLY["contrast"])

    def added(self) -> dict[str, Any]:
        return {"low": None, "high": None} if self.name == "EpsilonGammaBox" else {}

    def passes(self, model: nn.Module, **options: Any) -> Passes:
        return Passes(1, 1)

    def refuses(self, model: nn.Module) -> str | None:
        return graphs.unruled(model, has_rule)

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, *, draws: Draws, batch: int, **options: Any) -> Tensor:
        from zennit.attribution import Gradient
        from zennit.canonizers import NamedMergeBatchNorm
        from zennit.layer import Sum

        if "low" in options:
            options |= box(model, images, options)
        linear = (nn.Conv2d, nn.Linear)
        net = graphs.separate(model, is_activation, None if self.name in self.GRADIENTS else Sum)
        pairs = [] if self.name in self.GRADIENTS else graphs.directly_followed(net, linear, (nn.BatchNorm2d, nn.BatchNorm1d))
        composite = self.cls(**options, canonizers=[NamedMergeBatchNorm(pairs)])

        def explain(images: Tensor, targets: Tensor) -> Tensor:
            def relevance(output: Tensor) -> Tensor:
                start = torch.ones_like(output) if self.name in self.GRADIENTS else output.detach()
                return start * nn.functional.one_hot(targets, output.shape[1]).to(output)

            exact = torch.autocast(images.device.type, enabled=False)  # divides relevance by values near 0
            with torch.enable_grad(), exact, Gradient(net, composite) as attributor:
                return attributor(gradients_needed(images), relevance)[1].detach()

        return in_batches(explain, images, targets, size=batch)


def box(model: nn.Module, images: Tensor, given: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the lowest and highest possible pixel values. Raises ValueError if neither they nor the normalisation are known."""
    ends: dict[str, Tensor] = {}
    for name, value in (("low", 0.0), ("high", 1.0)):
        if isinstance(given[name], Tensor):
            ends[name] = given[name].to(images)
        elif given[name] is not None:
            ends[name] = torch.full_like(images[:1], given[name])
        elif (normalisation := describe(model).normalisation) is not None:
            ends[name] = normalisation(torch.full_like(images[:1], value))
        else:
            raise ValueError(f"zennit/EpsilonGammaBox needs {name}=: the normalisation of {describe(model).name} is not known")
    return ends
