"""CAMs of torchcam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from idsds.common.randomness import Draws
from idsds.methods.base import LOGIT_ONLY, Passes
from idsds.methods.cam import resized
from idsds.methods.libraries.base import CamMethod, gradients_needed
from idsds.models.base import describe


def channels_at(model: nn.Module, layer: str | None) -> int | None:
    """Return the number of channels of a layer of a library's net; None if a pass at the net's own input size does not determine it."""
    entry, outputs = describe(model), []
    if layer is None or entry.cam_channels != "first":
        return None
    note = model.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: outputs.append(output.shape[1]))
    try:
        with torch.no_grad(), note:
            model(next(model.parameters()).new_zeros(1, 3, entry.input_size, entry.input_size))
    except (RuntimeError, AssertionError):
        return None
    return outputs[0]


class Torchcam(CamMethod):
    """A torchcam CAM: raw maps, resized bilinearly."""

    library = "torchcam"
    GIVEN = (
        *("model", "target_layer", "batch_size", "input_shape", "enable_hooks", "base_kwargs", "reshape_transform", "grid_shape"),
        *("self", "class_idx", "scores", "normalized", "retain_graph", "targets", "target_shape"),
    )
    RANDOM = ("SSCAM", "SmoothGradCAMpp")
    SCORING = ("ScoreCAM", "SSCAM", "ISCAM")
    OF_LOGIT = {
        "LeGrad": "it reads the logits of each block's tokens, not the net's output",
        "CAM": LOGIT_ONLY["contrast"],  # reads the weights of the last layer
    }
    NAMES = ("CAM", *SCORING, "GradCAM", "GradCAMpp", "SmoothGradCAMpp", "XGradCAM", "LayerCAM", "FinerCAM", "RefineCAM", "LeGrad")

    def calls(self) -> list[Callable[..., Any]]:
        return [self.cls, self.cls.__call__]  # with FinerCAM's comparison_idx

    def added(self) -> dict[str, Any]:
        return {"layer": None} if self.name == "LeGrad" else super().added()

    def passes(self, model: nn.Module, **options: Any) -> Passes | None:
        if self.name in self.SCORING:
            return None  # one pass per channel of the layer
        if self.name == "SmoothGradCAMpp":
            return Passes(1 + options["num_samples"], options["num_samples"])
        return Passes(1) if self.name == "CAM" else Passes(1, 1)

    def refuses(self, model: nn.Module) -> str | None:
        if self.name == "CAM":
            linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
            if len(linear) != 1 or channels_at(model, describe(model).cam_layer) not in (None, linear[0].in_features):
                return "it needs a net whose only linear layer follows the mean over positions"
        if self.name == "LeGrad":
            from torchvision.models import VisionTransformer

            return None if isinstance(model, VisionTransformer) else "it reads the attention of torchvision's VisionTransformer"
        return super().refuses(model)

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, *, draws: Draws, batch: int, **options: Any) -> Tensor:
        layer, channels = options.pop("layer"), options.pop("channels", None)
        if self.name == "LeGrad":
            names = self.layers(model, layer or [f"encoder.layers.{name}" for name, _ in model.encoder.layers.named_children()])
            sides = [side // model.patch_size for side in images.shape[-2:]]
            options = self.with_base(options) | {"grid_shape": tuple(sides)}
        else:
            names = self.layers(model, layer)
            options = self.with_base(options) | {"reshape_transform": self.reading(model, names, images, channels)}
        if self.name in self.SCORING:
            options["batch_size"] = batch
        if self.name == "CAM" and options["fc_layer"] is None:
            options["fc_layer"] = next(name for name, module in model.named_modules() if isinstance(module, nn.Linear))
        asked = {name: options.pop(name) for name in ("comparison_idx",) if name in options}

        def explain(images: Tensor, targets: Tensor, _draws: Draws) -> Tensor:
            with torch.enable_grad(), self.cls(model, names if len(names) > 1 else names[0], **options) as extractor:
                scores = model(gradients_needed(images))
                (cam,) = extractor(targets.tolist(), scores, normalized=False, **asked)  # (B, h, w)
            return resized(cam.detach()[:, None].to(images.dtype), images)[:, 0]

        return self.batched(explain, images, targets, draws, batch)
