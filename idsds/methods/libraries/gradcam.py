"""CAMs of pytorch-grad-cam."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from idsds.common.randomness import Draws
from idsds.methods.base import Passes
from idsds.methods.libraries.base import CamMethod, gradients_needed, library
from idsds.models.base import describe


class GradCam(CamMethod):
    """A CAM of pytorch-grad-cam, which stretches each map to [0, 1] and resizes it bilinearly in float32."""

    library = "gradcam"
    GIVEN = (
        *("self", "model", "target_layers", "reshape_transform", "ablation_layer", "batch_size"),
        *("input_tensor", "targets", "target_idx", "tta_transforms", "compute_input_gradient", "uses_gradients", "detach"),
    )
    RANDOM = ("RandomCAM", "FinerCAM")
    OF_LOGIT = dict.fromkeys(("FinerCAM", "SESS"), "it applies a softmax to the net's output")
    WITHOUT_GRADIENT = ("EigenCAM", "KPCA_CAM", "FEM")
    PER_CHANNEL = ("AblationCAM", "ScoreCAM")
    NAMES = (
        *("GradCAM", "HiResCAM", "GradCAMElementWise", "XGradCAM", "GradCAMPlusPlus", "LayerCAM", "EigenGradCAM", "ShapleyCAM", "FullGrad"),
        *("SegEigenCAM", "FinerCAM", "RefineCAM", "SESS"),
        *PER_CHANNEL,
        *WITHOUT_GRADIENT,
        "RandomCAM",
    )
    CHANNELS_FIRST = ("AblationCAM", "ShapleyCAM")
    REFUSED = {
        "GuidedBackpropReLUModel": "use Guided Backprop or captum/GuidedBackprop, which are the same on any net",
        "DeepFeatureFactorization": "it factorises a layer's activations into several concepts, whatever the class",
    }

    def calls(self) -> list[Callable[..., Any]]:
        is_cam = issubclass(self.cls, library("gradcam").GradCAM.__base__)
        return [self.cls.__init__, self.cls.forward, *([self.cls.__call__] if is_cam else [])]  # with aug_smooth

    def passes(self, model: nn.Module, **options: Any) -> Passes | None:
        if self.name in (*self.PER_CHANNEL, *self.OF_LAYERS, "SESS") or options.get("aug_smooth"):
            return None
        return Passes(1) if self.name in self.WITHOUT_GRADIENT else Passes(1, 1)

    def refuses(self, model: nn.Module) -> str | None:
        if self.name in self.CHANNELS_FIRST and describe(model).cam_channels == "last":
            return self.LAST
        if self.name != "FullGrad":
            return super().refuses(model)
        biased = [module for module in model.modules() if isinstance(getattr(module, "bias", None), nn.Parameter)]
        biased = {type(module) for module in biased if not isinstance(module, nn.Linear)}  # whose biases have no positions
        if other := sorted(kind.__name__ for kind in biased - {nn.Conv2d, nn.BatchNorm2d}):
            return f"it reads only the biases of Conv2d and BatchNorm2d, and this model has biases of {', '.join(other)}"
        return None if biased else "it reads the biases of convolutions, and this model has none"

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, *, draws: Draws, batch: int, **options: Any) -> Tensor:
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        layer, channels = options.pop("layer"), options.pop("channels")
        names = [] if self.name == "FullGrad" else self.layers(model, layer)
        precise = self.reading(model, names, images, channels) if names else None
        made = {name: value for name, value in self.with_base(options).items() if name in inspect.signature(self.cls.__init__).parameters}
        asked = {name: value for name, value in options.items() if name not in made}
        if self.name == "AblationCAM":
            made["ablation_layer"] = library("gradcam").AblationLayer()

        def explain(images: Tensor, targets: Tensor, _draws: Draws) -> Tensor:
            layers = [model.get_submodule(name) for name in names]
            with (
                torch.enable_grad(),
                untouched(model, names, graph=self.name in ("ShapleyCAM", "SESS")),
                released(self.cls(model, layers, reshape_transform=precise, **made)) as cam,
            ):
                if hasattr(cam, "batch_size") and self.name != "AblationCAM":  # its maps depend on the batch: what it inserts adds up
                    cam.batch_size = batch
                of_targets: dict[str, Any] = {"targets": [ClassifierOutputTarget(target) for target in targets.tolist()]}
                if self.name == "FinerCAM":  # if not given, it selects the classes to compare with
                    of_targets = {"targets": None, "target_idx": int(targets)}
                try:
                    found = cam(gradients_needed(images), **of_targets, **asked)
                except RuntimeError as error:
                    if self.name == "ShapleyCAM" and "does not require grad" in str(error):
                        raise ValueError(f"{self.key} needs a second derivative, and the net is linear after {names[0]}") from error
                    raise
                return torch.from_numpy(np.ascontiguousarray(found)).to(images)

        return self.batched(explain, images, targets, draws, batch)


@contextmanager
def released(cam: Any) -> Iterator[Any]:
    """Remove the hooks of a CAM and of the CAMs that it contains afterwards."""
    try:
        yield cam
    finally:
        for each in getattr(cam, "base_cam_per_layer", [getattr(cam, "base_cam", cam)]):
            each.activations_and_grads.release()


@contextmanager
def untouched(model: nn.Module, layers: Sequence[str], graph: bool) -> Iterator[None]:
    """Let pytorch-grad-cam clear gradients and replace layers, both restored afterwards, and hide its progress bar.

    Parameters require gradients meanwhile: without them a second-order gradient is missing instead of 0 if the net is linear after the
    layer, and SESS explains copies of the image that do not require a gradient.
    """
    import pytorch_grad_cam.ablation_cam
    import pytorch_grad_cam.score_cam

    with ExitStack() as stack:
        for parameter in model.parameters():
            stack.callback(setattr, parameter, "grad", parameter.grad)
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(graph or parameter.requires_grad)
        for layer in layers:
            parent, _, leaf = layer.rpartition(".")
            stack.callback(setattr, model.get_submodule(parent), leaf, model.get_submodule(layer))
        for home in (pytorch_grad_cam.ablation_cam, pytorch_grad_cam.score_cam):
            stack.callback(setattr, home, "tqdm", home.tqdm)
            home.tqdm = SimpleNamespace(tqdm=lambda values, *_args, **_options: values)  # type: ignore[attr-defined]
        yield
