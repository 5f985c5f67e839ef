"""CAMs of torchcam's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from idsds.common.batching import in_batches
from idsds.common.randomness import Draws
from idsds.methods.base import LOGIT_ONLY, Passes
from idsds.methods.cam import Reading, cam_layer, resized
from idsds.methods.libraries.base import CamMethod, gradients_needed, one_by_one


class Torchcam(CamMethod):
    """A CAM of torchcam's: its raw maps, resized bilinearly."""

    library = "torchcam"
    GIVEN = frozenset(("model", "target_layer", "batch_size", "input_shape", "enable_hooks", "base_kwargs", "reshape_transform"))
    RANDOM = ("SSCAM", "SmoothGradCAMpp")
    SCORING = ("ScoreCAM", "SSCAM", "ISCAM")
    NAMES = ("CAM", *SCORING, "GradCAM", "GradCAMpp", "SmoothGradCAMpp", "XGradCAM", "LayerCAM", "FinerCAM")

    @property
    def explains_not(self) -> Mapping[str, str]:  # type: ignore[override]
        return LOGIT_ONLY if self.name == "CAM" else {}  # it reads the weights of the last layer

    def passes(self, model: nn.Module, **options: Any) -> Passes | None:
        if self.name in self.SCORING:
            return None  # a pass for each channel of the layer
        if self.name == "SmoothGradCAMpp":
            return Passes(1 + options["num_samples"], options["num_samples"])
        return Passes(1) if self.name == "CAM" else Passes(1, 1)

    def refuses(self, model: nn.Module) -> str | None:
        if self.name == "CAM" and sum(isinstance(module, nn.Linear) for module in model.modules()) != 1:
            return "it needs a net whose only linear layer follows the mean over positions"
        return super().refuses(model)

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
        name = cam_layer(model, layer)
        precise = self.reading(model, name, images, channels)
        if self.name in self.SCORING:
            options["batch_size"] = batch
        if self.name == "CAM" and options["fc_layer"] is None:
            options["fc_layer"] = next(name for name, module in model.named_modules() if isinstance(module, nn.Linear))

        def explain(images: Tensor, targets: Tensor, _draws: Draws | None = None) -> Tensor:
            with torch.enable_grad(), self.cls(model, name, **options, reshape_transform=precise) as extractor:
                scores = model(gradients_needed(images))
                (cam,) = extractor(targets.tolist(), scores, normalized=False)  # (B, h, w)
            return resized(cam.detach()[:, None], images)[:, 0]

        if self.name in self.RANDOM:
            return one_by_one(explain, images, targets, draws)
        return in_batches(explain, images, targets, size=batch)
