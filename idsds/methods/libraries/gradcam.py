"""CAMs of pytorch-grad-cam's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from idsds.common.batching import in_batches
from idsds.common.randomness import Draws
from idsds.methods.base import Passes
from idsds.methods.cam import Reading, cam_layer
from idsds.methods.libraries.base import CamMethod, gradients_needed, library, one_by_one


class GradCam(CamMethod):
    """A CAM of pytorch-grad-cam's, which stretches each map to [0, 1] and resizes it bilinearly, in float32."""

    library = "gradcam"
    GIVEN = frozenset(("model", "target_layers", "reshape_transform", "ablation_layer", "batch_size"))
    WITHOUT_GRADIENT = ("EigenCAM", "KPCA_CAM", "FEM")
    PER_CHANNEL = ("AblationCAM", "ScoreCAM")
    NAMES = (
        *("GradCAM", "HiResCAM", "GradCAMElementWise", "XGradCAM", "GradCAMPlusPlus", "LayerCAM", "EigenGradCAM", "ShapleyCAM", "FullGrad"),
        *PER_CHANNEL,
        *WITHOUT_GRADIENT,
        "RandomCAM",
    )

    def passes(self, model: nn.Module, **options: Any) -> Passes | None:
        if self.name in self.PER_CHANNEL:
            return None
        return Passes(1) if self.name in self.WITHOUT_GRADIENT else Passes(1, 1)

    def refuses(self, model: nn.Module) -> str | None:
        if self.name != "FullGrad":
            return super().refuses(model)
        layers = (module for module in model.modules() if type(module) in (nn.Conv2d, nn.BatchNorm2d))
        return None if any(module.bias is not None for module in layers) else "it reads the biases of convolutions, and this model has none"

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Tensor,
        *,
        layer: str | None,
        channels: Reading,
        draws: Draws,
        batch: int,
        **options: Any,
    ) -> Tensor:
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        name = "" if self.name == "FullGrad" else cam_layer(model, layer)
        precise = self.reading(model, name, images, channels) if name else None
        if self.name == "AblationCAM":
            options |= {"ablation_layer": library("gradcam").AblationLayer(), "batch_size": batch}

        def explain(images: Tensor, targets: Tensor, _draws: Draws | None = None) -> Tensor:
            layers = [model.get_submodule(name)] if name else []
            with (
                torch.enable_grad(),
                untouched(model, name, second_order=self.name == "ShapleyCAM"),
                self.cls(model, layers, reshape_transform=precise, **options) as cam,
            ):
                if hasattr(cam, "batch_size"):
                    cam.batch_size = batch
                wanted = [ClassifierOutputTarget(target) for target in targets.tolist()]
                return torch.from_numpy(np.ascontiguousarray(cam(gradients_needed(images), wanted))).to(images)

        if self.name == "RandomCAM":
            return one_by_one(explain, images, targets, draws)
        return in_batches(explain, images, targets, size=batch)


@contextmanager
def untouched(model: nn.Module, layer: str, second_order: bool) -> Iterator[None]:
    """Within it pytorch-grad-cam may clear gradients and put another layer in a layer's place; both are restored, and no bar is shown.

    A gradient of second order needs parameters that require a gradient, too: where the net is linear behind the layer it is 0, not missing.
    """
    import pytorch_grad_cam.ablation_cam
    import pytorch_grad_cam.score_cam

    gradients = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, *_ in gradients:
        parameter.requires_grad_(second_order or parameter.requires_grad)
    before, quiet = {}, SimpleNamespace(tqdm=lambda values, *_args, **_options: values)
    parent, _, leaf = layer.rpartition(".")
    module = model.get_submodule(layer) if layer else None
    for home in (pytorch_grad_cam.ablation_cam, pytorch_grad_cam.score_cam):
        before[home], home.tqdm = home.tqdm, quiet  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for home, bar in before.items():
            home.tqdm = bar  # type: ignore[attr-defined]
        if module is not None and model.get_submodule(layer) is not module:
            setattr(model.get_submodule(parent), leaf, module)
        for parameter, gradient, required in gradients:
            parameter.grad = gradient
            parameter.requires_grad_(required)
