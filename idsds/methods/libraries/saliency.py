"""Methods of the ``saliency`` package (Google PAIR)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from idsds.common.randomness import Draws
from idsds.methods.base import Passes
from idsds.methods.libraries.base import LibraryMethod, library


class Saliency(LibraryMethod):
    """A method of the ``saliency`` package, which explains one numpy image at a time."""

    library = "saliency"
    GIVEN = ("self", "x_value", "call_model_function", "call_model_args", "batch_size")
    NAMES = ("GuidedIG", "BlurIG")
    REFUSED = {
        "XRAI": "its Felzenszwalb segments are for photos with values of 0 to 255; pass it as a callable of your own",
        "GradCam": "Grad-CAM is the same",
        "Occlusion": "use captum/Occlusion, which is the same and batched",
        "IntegratedGradients": "use IG or captum/IntegratedGradients, which are the same and batched",
        "GradientSaliency": "Gradient is the same",
    }
    STEPS: ClassVar[Mapping[str, str]] = {"GuidedIG": "x_steps", "BlurIG": "steps"}

    def calls(self) -> list[Callable[..., Any]]:
        return [self.cls.GetMask]

    def passes(self, model: nn.Module, **options: Any) -> Passes:
        return Passes(1, 1).times(options[self.STEPS[self.name]])

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, *, draws: Draws, batch: int, **options: Any) -> Tensor:
        with_numpy_2()
        maps = []
        for image, target in zip(images, targets, strict=True):

            def gradient(values: np.ndarray, call_model_args: object, expected_keys: object, target: Tensor = target) -> dict[str, Any]:
                inputs = torch.from_numpy(values).to(images).permute(0, 3, 1, 2).requires_grad_()
                with torch.enable_grad():
                    (found,) = torch.autograd.grad(model(inputs)[:, target].sum(), inputs)
                return {library("saliency").INPUT_OUTPUT_GRADIENTS: found.permute(0, 2, 3, 1).cpu().numpy()}

            values = image.permute(1, 2, 0).detach().cpu().numpy()  # (H, W, C)
            found = self.cls().GetMask(values, gradient, **options)
            maps.append(torch.from_numpy(np.asarray(found)).to(images).permute(2, 0, 1))
        return torch.stack(maps)


@cache
def with_numpy_2() -> None:
    """Let saliency 0.2.1 use the argument name of ``numpy.quantile`` that numpy 2.4 removed."""
    from saliency.core import guided_ig

    def quantile(values: np.ndarray, q: float, interpolation: str) -> np.ndarray:
        return np.quantile(values, q, method=interpolation)

    guided_ig.np = SimpleNamespace(**{**vars(np), "quantile": quantile})
